"""BYOL: an image encoder that predicts how a slow copy of itself sees another view; no picture is a negative.

Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv:2006.07733). Encoder, projector and predictor, the paper's online
network, see one view; the teacher, its target network, sees the other: a copy of encoder and projector, without a
predictor, whose weights are a moving average of theirs. The prediction is to point where the teacher points: the loss
is the squared distance of the two as unit rows, 2 − 2 cos, summed over both ways of giving out the views. No gradient
goes through the teacher; it follows after each step, ever more slowly. That not everything ends in one point is the
predictor's and the teacher's doing. What is kept is the encoder.

    xmodal train byol                                            glyphs, some minutes on two cores
    xmodal train byol --data cifar10/train.parquet --preset quick
    torchrun --nproc_per_node 8 -m xmodal.train.byol --data imagenet --preset paper --batch-size 512

The loss says little of what is learned: it may rise while features get better. Look at the nearest neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.pretrain import Judge, Optimizer, Pretraining, open_data, open_encoder, train_and_judge, view_batches

if TYPE_CHECKING:
    from xmodal.encoders.image import ImageEncoder
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    # Grill et al. 2020, section 3.3; deepmind-research, byol/configs/byol.py, whose rates for shorter runs are higher:
    # 0.3 for 300 epochs, 0.45 for 100 or 40, with a weight decay of 1e-6.
    model: str = "timm:resnet50/random"
    batch_size: int = 4096
    epochs: float = 1000
    optimizer: Optimizer = "lars"
    lr: float = 0.2
    wd: float = 1.5e-6
    warmup_epochs: float | None = 10
    momentum: float = 0.996
    """How much of the teacher stays in the first step; it rises to 1. For 300 or 100 epochs 0.99, for 40 0.97."""
    hidden_dim: int = 4096
    """Width of the hidden layer of projector and predictor."""
    head_dim: int = 256
    """Width of the space in which views are compared."""

    def check(self) -> None:
        super().check()
        require(self, "momentum", lambda v: 0 <= v <= 1, "between 0 and 1")
        for name in ("hidden_dim", "head_dim"):
            require(self, name, lambda v: v >= 1, "at least 1")


PRESETS: dict[str, dict[str, Any]] = {
    # The momentum is that of byol/configs/byol.py for its shortest run; the rest is ours, tried in short runs.
    "quick": {
        **{"model": "small", "batch_size": 256, "epochs": 10, "momentum": 0.97, "hidden_dim": 512, "head_dim": 128},
        **{"optimizer": "adamw", "lr": 2e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def byol(config: Config, encoder: ImageEncoder) -> Method:
    """The method: encoder, projector and predictor, and a teacher of the first two that follows."""
    from torch import Tensor

    from xmodal.encoders.heads import batch_norm_mlp
    from xmodal.encoders.image import one_by_one
    from xmodal.encoders.teacher import Teacher
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import byol_loss
    from xmodal.schedule import cosine_to_one
    from xmodal.sharding import whole

    class BYOL(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            self.projector = batch_norm_mlp(encoder.d, config.hidden_dim, config.head_dim)
            self.predictor = batch_norm_mlp(config.head_dim, config.hidden_dim, config.head_dim)
            self.teacher, self.teacher_projector = Teacher(self.towers), Teacher(self.projector)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {"views": one_by_one(self.towers, batch["views"])}  # (b, 2, d)

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            """What the teacher sees, without a gradient, as whatever a Teacher returns."""
            return {"views": one_by_one(self.teacher, batch["views"])}  # (b, 2, d)

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            predicted = [self.predictor(self.projector(view)) for view in representations["views"].unbind(1)]
            first, second = (self.teacher_projector(view) for view in targets["views"].unbind(1))  # (b, head_dim)
            # Each view predicts the teacher's row of the other one.
            return byol_loss(predicted[0], second) + byol_loss(predicted[1], first), {}

        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            # teacher = momentum · teacher + (1 − momentum) · online. Along half a cosine the momentum rises to 1, where
            # the teacher stands still: 1 − (1 − momentum at first) · (cos(π · step / steps) + 1) / 2 (section 3.2).
            momentum = cosine_to_one(config.momentum, progress.steps)(progress.step)
            self.teacher.follow(self.towers, momentum)
            self.teacher_projector.follow(self.projector, momentum)

        def export(self) -> ImageEncoder:
            return whole(encoder)

    return BYOL()


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("byol", config)
    train, held = open_data(config)
    encoder = open_encoder(config, train)
    data = view_batches(config, this, train, encoder, "byol")
    return train_and_judge(config, this, byol(config, encoder), data, Judge(config, train, held))


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train byol", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
