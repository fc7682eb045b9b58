"""Learning rates and momenta as pure functions of the step: nothing to save, nothing to get out of step on a resume."""

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


def cosine_to_one(start: float, steps: int) -> Callable[[int], float]:
    """A teacher's momentum, 1 − (1 − start) · (cos(π · step / steps) + 1) / 2: it moves less and less.

    Grill et al. 2020 (arXiv:2006.07733), section 3.2. The reference code (deepmind-research, byol/configs/byol.py)
    starts at 0.97 for 40 epochs of ImageNet, 0.99 for 100 and 300, 0.996 for 1000.
    """

    def momentum(step: int) -> float:
        return 1 - (1 - start) * (math.cos(math.pi * min(step, steps) / max(1, steps)) + 1) / 2

    return momentum
