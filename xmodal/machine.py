"""What the machine gives this process: memory, and the limits that a container sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cgroup(name: str) -> str:
    """A figure of this process's container (cgroup v2), or nothing."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or the container's share of them, which may be a fraction."""
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = cgroup("cpu.max").split()  # "max 100000" or "200000 100000": microseconds in a period
    return min(usable, int(quota[0]) / int(quota[1])) if len(quota) == 2 and quota[0] != "max" else usable


def memory_bytes() -> int | None:
    """Main memory, or the container's share of it; None where the system doesn't tell."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = cgroup("memory.max")
    return min(memory, int(limit)) if limit.isdigit() else memory


def free_bytes(device: torch.device) -> int | None:
    """Memory that tensors on the device can still take, before anything is pushed out; None where it isn't told."""
    import torch

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = cgroup("memory.max"), cgroup("memory.current")
    if free is not None and limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free
