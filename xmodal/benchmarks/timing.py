"""How long things take beside each other, and how much memory: what all benchmarks share."""

from __future__ import annotations

import ctypes
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contest:
    """The same work done by several; the first is ours, and more of them may be."""

    what: str
    functions: dict[str, Callable[[], Any]]
    protocol: dict[str, Any]
    columns: dict[str, dict[str, float]] = field(default_factory=dict)  # who -> a figure's name -> its value
    ours: int = 1


def measure(contest: Contest, repeats: int) -> dict[str, Any]:
    """Seconds of each in turn, medians and fastest, ours as parts of each other's, peak memory; as plain data."""
    for function in contest.functions.values():
        function()  # a first time that doesn't count
    with Others() as others:
        seconds = in_turn(contest.functions, repeats)
    return {
        "what": contest.what,
        "protocol": {**contest.protocol, "repeats": repeats, **machine(), "CPU taken by others": others.said()},
        **summed_up(seconds, contest.ours),
        "columns": contest.columns,
        "peak bytes": {name: peak_bytes(function) for name, function in contest.functions.items()},
    }


def summed_up(seconds: dict[str, list[float]], ours: int = 1) -> dict[str, Any]:
    """Seconds by name, their medians and fastest, and the first one's (ours) as parts of each peer's.

    ours: how many of the first are ours; the ratios of those after the first have both names in their keys.
    """
    first, *more = list(seconds)[:ours]
    peers = list(seconds)[ours:]
    result: dict[str, Any] = {
        "seconds": seconds,
        "medians": {name: statistics.median(times) for name, times in seconds.items()},
        "fastest": {name: min(times) for name, times in seconds.items()},
    }
    for kind in ("medians", "fastest"):
        found = result[kind]
        result[f"ratio of {kind}"] = {
            **{peer: found[first] / found[peer] for peer in peers},
            **{f"{own} / {peer}": found[own] / found[peer] for own in more for peer in peers},
        }
    return result


def in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each. In turn and the first changing, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            _wait_for_device()
            start = time.perf_counter()
            functions[name]()
            _wait_for_device()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_bytes(function: Callable[[], Any]) -> int | None:
    """How far memory rises above what is held while `function` runs: on a GPU what torch allocates there, else this
    process's; None where it can't be told.

    Linux keeps the highest mark of a process and resets it on request.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - held
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but is still held would hide what is used again
        reset.write_text("5")
    except (OSError, AttributeError):
        return None
    before = _kib(status, "VmRSS")
    function()
    return 1024 * max(0, _kib(status, "VmHWM") - before)


def rss_peak_bytes(process: int) -> int | None:
    """The most that a process has held so far; None where it can't be told."""
    try:
        return 1024 * _kib(Path(f"/proc/{process}/status"), "VmHWM") or None
    except OSError:
        return None


class Others:
    """How much of the machine's CPU time went to others meanwhile: a figure taken beside much of it means little.

    used: gives the seconds that the measured work has used so far; this process's where it isn't given.
    """

    share: float | None = None
    own: float | None = None  # seconds that the measured work took of it, over all cores

    def __init__(self, used: Callable[[], float] = time.process_time) -> None:
        self._used = used

    def __enter__(self) -> Others:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before and (after := self._read()):
            busy, every, own = (b - a for a, b in zip(self._before, after, strict=True))
            self.share, self.own = max(0.0, busy - own) / every if every else None, own

    def said(self) -> str:
        return "not told by this system" if self.share is None else f"{self.share:.0%} while timing"

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds over all cores: busy, all, and the measured work's own."""
        try:
            ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]  # and waiting for a disk
        return (sum(ticks) - idle) / second, sum(ticks) / second, self._used()


def machine() -> dict[str, str]:
    """What a figure was measured on."""
    import torch

    import xmodal
    from xmodal.doctor import devices

    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "CPU": devices()[0].found,
        "threads": f"torch {torch.get_num_threads()}",
        "versions": f"xmodal {xmodal.__version__}, torch {torch.__version__}",
    }


def _wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
