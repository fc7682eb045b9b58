"""The contract between a recipe and the loop: what `fit` needs of a method, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

Batch = dict[str, Any]  # flat; each value a tensor or list with the local rows first


class Encoder(Protocol):
    """What comes out of training."""

    def save(self, folder: Path, /) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where training stands, before the step is taken."""

    step: int  # from 0
    steps: int
    steps_per_epoch: int
    batch: int  # global

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        return self.step / self.steps


class Method(nn.Module):
    """Its state_dict is what a checkpoint holds: towers, teacher, heads, queue, prototypes.

    `towers` is what is compiled and sharded, in place, as are copies of it; its forward takes any subset of its inputs.
    """

    towers: nn.Module

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The representations of a batch or of a slice of it, rows first; may be called again on the same slice."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """What is compared with, without gradient, rows first: teachers' outputs, keys, ids, labels."""
        return {}

    def objective(
        self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The loss of the global batch, once a step, and global metrics for the log.

        Heads with statistics of the batch run here. What of theirs `after_step` needs, such as rows for a queue, may be
        added to the targets.
        """
        raise NotImplementedError

    def after_step(self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress) -> None:
        """Clamp, average, enqueue, normalise; left out together with a step that is skipped."""

    def export(self) -> Encoder:
        """The encoder that is evaluated, saved and opened again by `xmodal.load`; every process calls it.

        Towers may be sharded: what is exported is plain, of `sharding.whole`.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer. Here: no weight decay for gains, biases and scalars (CLIP, section 2.5)."""
        decayed, plain = [], []
        for p in self.parameters():
            if p.requires_grad:
                (decayed if p.ndim >= 2 else plain).append(p)
        return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
