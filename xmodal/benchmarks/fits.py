"""Which batch fits into the memory that is free: the loss's part of it, beside the peers' and beside a model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from xmodal.benchmarks import losses
from xmodal.benchmarks.timing import machine, peak_bytes
from xmodal.errors import InputError
from xmodal.machine import free_bytes

SIZES = (2048, 4096)  # pairs at which memory is measured


def fits(what: str, width: int) -> dict[str, Any]:
    """Measured peaks at two sizes, a·N² + b·N through them, and the largest N that this leaves room for.

    Raises InputError where the system tells no memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_bytes(device)
    peaks: dict[str, list[int]] = {}
    for pairs in SIZES:
        for who, function in losses.contest(what, pairs, width, 14.3, None, 0, torch.float32).functions.items():
            function()
            peaks.setdefault(who, []).append(_peak(function))
    if free is None:
        raise InputError("This system doesn't tell how much memory is free.")
    small, large = SIZES
    found = {}
    for who, (few, many) in peaks.items():
        square = max(0.0, (many / large - few / small) / (large - small))  # bytes a pair of pairs
        square = 0.0 if square * large < 0.1 * many / large else square  # noise of the measurement
        line = many / large - square * large
        found[who] = {
            "peak bytes": dict(zip(map(str, SIZES), (few, many), strict=True)),
            "bytes a pair": line,
            "bytes a pair of pairs": square,
            "largest batch": _largest(square, line, free),
        }
    protocol = {"what": f"memory of {what}'s loss and gradients, beside its inputs", "width": width, "type": "float32"}
    protocol |= {"free": f"{free / 2**30:.1f} GiB", "measured at": f"{SIZES} pairs, the rest follows", **machine()}
    return {"protocol": protocol, "fits": found}


def _largest(square: float, line: float, free: float) -> int:
    if square == 0:
        return int(free / max(line, 1.0))
    return int((math.sqrt(line**2 + 4 * square * free) - line) / (2 * square))


def _peak(function: Callable[[], Any]) -> int:
    peak = peak_bytes(function)
    if peak is None:
        raise InputError("This system doesn't tell a process's highest memory.")
    return peak
