"""What a run warns of in words: a temperature at its end, representations that collapse, a loader that is too slow.

Fed with numbers, step by step. A warning comes once a thing has lasted, and again only after it had gone. Each process
judges by its own rows, which are a random part of the batch: what the first finds is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Steps in a row; the figures below were met for a few steps at most in runs that went well.
LASTING = 100
CAP = 100.0  # Radford et al. 2021, section 2.5: logits are never scaled by more
FLAT = 1.5  # open_clip's issues 214 and 815: a scale that sinks to 1 is how runs that fail end
# Measured in 120 steps on glyphs (`quick`, 64 pairs a batch). The mean cosine between two rows of a batch rose to 0.93
# within eight steps of a run that went well, and fell to 0.45. It came to 0.999 for good with a hundred times the
# learning rate, with a thousand times the weight decay, with a loss without negatives, and with captions dealt to other
# pictures.
ALIKE = 0.98
# The run that went well had 2.0 directions at one step and more at all others; one that fell to a line has 1.
FEW = 1.5
# In the run that went well pairs stood out by more than 0.16 nats from the third step on, and by 5 in the end; in those
# that collapsed by less than 0.02 once they had.
UNTOLD = 0.05
LONG = 300  # steps until that is said: what is hard to learn stays at the loss of chance for a while
MOST_ROWS = 256  # of a batch that are looked at: enough for a mean, and nothing beside encoding them
WINDOW = 50  # steps over which waiting for data is added up
SLOW = 0.5  # of the time
PATIENCE = 60.0  # seconds until a step that waits for its data says so


class Lasting:
    """Yes when something has been so for `steps` steps, once; again only after it was not."""

    def __init__(self, steps: int) -> None:
        self.steps, self.held = steps, 0

    def __call__(self, so: bool) -> bool:
        self.held = self.held + 1 if so else 0
        return self.held == self.steps


class Guards:
    """The guards over what is trained. A resumed run counts anew."""

    def __init__(self) -> None:
        self.first_scale: float | None = None
        self.rate = math.inf
        self.apart, self.many, self.nats = False, False, math.nan
        self.capped, self.flat = Lasting(LASTING), Lasting(LASTING)
        self.alike, self.few, self.untold = Lasting(LASTING), Lasting(LASTING), Lasting(LONG)

    def step(
        self, loss: float, rate: float, figures: Mapping[str, float | Tensor], representations: Mapping[str, Tensor]
    ) -> list[str]:
        """What is to be warned of after a step; rate: its learning rate; figures: the method's own, such as scale.

        representations: of this process, rows first, as `Method.encode` gives them.
        """
        warm, self.rate = rate <= self.rate and self.rate < math.inf, rate
        scale = float(figures.get("scale", math.nan))
        return [*self._temperature(scale), *self._collapse(loss, warm, scale, representations)]

    def _temperature(self, scale: float) -> list[str]:
        if self.first_scale is None:
            self.first_scale = scale
        # A model that came with the cap, as OpenAI's do, and a scale that is not learned are no news.
        if self.capped(abs(scale - CAP) < 0.01 and self.first_scale < CAP - 1):
            return [
                f"scale has been {CAP:g}, its cap, for {LASTING} steps: the temperature would sink further. Late in a "
                "long run that is usual; early, the rate is too high or the batch holds few pairs that are hard to "
                "tell apart: try a lower --lr or a larger --batch-size."
            ]
        if self.flat(scale < FLAT and scale != self.first_scale):
            return [
                f"scale has been below {FLAT} for {LASTING} steps (now {scale:.2f}): the temperature is so high that "
                "right and wrong pairs count about the same, as in runs that fail. Try a lower --lr or a longer "
                "--warmup, and look whether captions belong to their images."
            ]
        return []

    def _collapse(self, loss: float, warm: bool, scale: float, representations: Mapping[str, Tensor]) -> list[str]:
        cosines, directions, advantage = measure(representations)
        alike = max(cosines, key=lambda name: cosines[name], default="")
        few = min(directions, key=lambda name: directions[name], default="")
        together = cosines.get(alike, 0.0) > ALIKE
        flat = not together and directions.get(few, math.inf) < FEW
        # Before the warm-up is over only what has been otherwise counts: a random network's rows are alike, too.
        self.apart, self.many = self.apart or not together, self.many or not flat
        nats = advantage * (scale if math.isfinite(scale) else 1.0)
        if math.isfinite(nats):  # on average: of few rows, strangers stand out or not by chance
            self.nats = nats if math.isnan(self.nats) else self.nats + (nats - self.nats) / LASTING
        found = []
        if self.alike(together and (warm or self.apart)):
            found.append(
                f"collapse: for {LASTING} steps the batch's {alike!r} rows have pointed one way (mean cosine "
                f"{cosines[alike]:.4f}, loss {loss:.3f}), whatever they are of. Scores will be those of chance. Begin "
                "anew, or resume from an earlier checkpoint, with a lower --lr, a longer --warmup or less --wd; if "
                "that doesn't help, look whether what is paired belongs together."
            )
        if self.few(flat and (warm or self.many)):
            found.append(
                f"collapse: for {LASTING} steps the batch's {few!r} rows have varied along {directions[few]:.1f} "
                "directions only: a few kinds are told apart, and nothing within them. Try a lower --lr, a longer "
                "--warmup or less --wd."
            )
        if self.untold(warm and self.nats < UNTOLD) and self.alike.held < LASTING:  # or it has been said
            found.append(
                f"for {LONG} steps pairs have been no more alike than other rows of the batch (their logits are higher "
                f"by {self.nats:.3f} on average; loss {loss:.3f}): nothing is learned from them. Look whether what is "
                "paired belongs together (xmodal data inspect); then try another --lr."
            )
        return found


@torch.no_grad()
def measure(representations: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, float], float]:
    """Of rows (b, …, d) by name: mean cosines, effective numbers of directions, and by how much pairs are more alike.

    A mean cosine is that of two different rows; 1 minus it is the spread of Chen & He 2021 (arXiv:2011.10566, section
    4.1, where collapse is a deviation of unit rows of 0), summed over the axes. The number of directions is (Σλ)² / Σλ²
    over the eigenvalues of the rows' covariance; it is left out for fewer than 16 rows, which have few anyway. Pairs
    are the first two views of the batch's rows: image and text, or an axis (b, 2, d); the last figure is their mean
    cosine above that of rows that are no pair, NaN where there are none.
    """
    names, figures, views = [], [], []
    for name, rows in representations.items():
        if rows.ndim < 2 or not rows.is_floating_point():
            continue
        unit = normalize(rows[:MOST_ROWS].float(), dim=-1)
        some = unit.flatten(0, -2)[:MOST_ROWS]  # (n, d)
        n, mean = len(some), some.mean(0)
        centred = some - mean
        scatter = centred.T @ centred if n > some.shape[1] else centred @ centred.T  # the same eigenvalues
        names.append((name, n))
        figures += [(n * mean.square().sum() - 1) / (n - 1), scatter.trace().square() / scatter.square().sum()]
        views += [unit] if unit.ndim == 2 else list(unit.flatten(1, -2).unbind(1)[:2])
    pair = next((both for both in pairwise(views) if both[0].shape == both[1].shape and len(both[0]) > 1), None)
    if pair is not None:
        first, second = pair
        n = len(first)
        above = (first * second).sum(-1).mean() - first.mean(0) @ second.mean(0)  # which has the pairs in it, too
        figures.append(above * n / (n - 1))
    told = torch.stack(figures).tolist() if figures else []
    cosines = {name: told[2 * i] for i, (name, _) in enumerate(names)}
    directions = {name: told[2 * i + 1] for i, (name, n) in enumerate(names) if n >= 16}
    return cosines, directions, told[-1] if pair is not None else math.nan


class SlowLoader:
    """The guard over a loader that keeps training waiting; workers: how many read ahead, on `cores` cores."""

    def __init__(self, workers: int, cores: int) -> None:
        self.workers, self.cores = workers, cores
        self.steps, self.waited, self.worked, self.slow = -1, 0.0, 0.0, False

    def step(self, waited: float, worked: float) -> str | None:
        """Seconds that a step waited for its data, and that passed between that of the step before and its asking.

        The first step, for which workers start, is left out.
        """
        self.steps += 1
        if self.steps == 0:
            return None
        self.waited, self.worked = self.waited + waited, self.worked + worked
        if self.steps < WINDOW:
            return None
        waited, worked = self.waited / WINDOW, self.worked / WINDOW
        self.steps, self.waited, self.worked = 0, 0.0, 0.0
        share, before = waited / (waited + worked), self.slow
        self.slow = share > (SLOW if not before else SLOW / 2)  # about the limit it would come and go
        if not self.slow or before:
            return None
        # One worker takes so long for a batch; a process that reads itself does nothing else meanwhile.
        reading = self.workers * (waited + worked) if self.workers else waited
        enough = min(self.cores, math.ceil(reading / max(worked, 1e-3)))
        told = (
            f"{share:.0%} of the last {WINDOW} steps went into waiting for data ({waited:.2f} of "
            f"{waited + worked:.2f} s a step). "
        )
        if enough > self.workers:
            return told + f"Try --workers {enough}."
        return told + f"{self.workers} workers are all that {self.cores} cores can feed: smaller pictures read faster."


class Stall:
    """The guard over a step that waits for its data: once, and again only after one came in time."""

    def __init__(self) -> None:
        self.patience, self.told = PATIENCE, False

    def waits(self, seconds: float) -> bool:
        """Whether to say so now, of a step that has waited for so long."""
        if self.told or seconds < self.patience:
            return False
        self.told = True
        return True

    def came(self, seconds: float) -> None:
        """A step's data came after so long."""
        self.told = self.told and seconds >= self.patience
