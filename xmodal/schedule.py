"""Learning rates as pure functions of the step: nothing to save, nothing to get out of step on a resume."""

from __future__ import annotations

import math
from collections.abc import Callable


def linear(peak: float, steps: int, warmup: int) -> Callable[[int], float]:
    """Linear from peak/warmup over `warmup` steps, then linear to zero at `steps`."""
    warmup = min(warmup, steps // 10) if warmup >= steps else warmup

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (steps - step) / max(1, steps - warmup)

    return lr


def cosine(peak: float, steps: int, warmup: int) -> Callable[[int], float]:
    """Linear from peak/warmup over `warmup` steps, then half a cosine to zero at `steps` (Loshchilov & Hutter 2017).

    A warm-up longer than the run is cut to a tenth of it.
    """
    warmup = min(warmup, steps // 10) if warmup >= steps else warmup

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return lr
