"""How long things take beside each other, and how much memory: what the benchmarks share."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each. In turn and the first changing, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_bytes(function: Callable[[], Any]) -> int | None:
    """How far this process's memory rises above what it holds while `function` runs; None where it can't be told.

    Linux keeps the highest mark of a process and resets it on request.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but is still held would hide what is used again
        reset.write_text("5")
    except (OSError, AttributeError):
        return None
    before = _kib(status, "VmRSS")
    function()
    return 1024 * max(0, _kib(status, "VmHWM") - before)


def machine() -> dict[str, str]:
    """What a figure was measured on."""
    import torch

    import xmodal
    from xmodal.doctor import devices

    return {
        "CPU": devices()[0].found,
        "threads": f"torch {torch.get_num_threads()}",
        "load": f"{os.getloadavg()[0]:.1f} at the end, itself included" if hasattr(os, "getloadavg") else "",
        "versions": f"xmodal {xmodal.__version__}, torch {torch.__version__}",
    }


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
