"""Barlow Twins: an image encoder whose features agree between two views, and each of which says something of its own.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv:2103.03230). Over the
global batch, each feature of one view is to correlate with the same feature of the other and with no other feature: no
negatives, no teacher, no predictor. What is kept is the encoder; what correlates is wide, and of a head.

    xmodal train barlow_twins                                    glyphs, some minutes on two cores
    xmodal train barlow_twins --data cifar10/train.parquet --preset quick
    torchrun --nproc_per_node 8 -m xmodal.train.barlow_twins --data imagenet --preset paper --batch-size 256

The loss begins near twice the number of features and has no scale of its own: compare it between runs of one width.
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
    # Zbontar et al. 2021, section 2.2; facebookresearch/barlowtwins, main.py.
    model: str = "timm:resnet50/random"
    batch_size: int = 2048
    epochs: float = 1000
    optimizer: Optimizer = "lars"
    lr: float = 0.2
    lr_biases: float = 0.0048
    """The same for biases, and gains and shifts of BatchNorm."""
    wd: float = 1e-6
    warmup_epochs: float | None = 10
    redundancy: float = 0.0051
    """λ, what a correlation between different features weighs: 0.0051 in the code, 0.005 in the paper."""
    head_dim: int = 8192
    """Width of all three layers of the head, and so the number of features that are correlated."""

    def check(self) -> None:
        super().check()
        require(self, "lr_biases", lambda v: v > 0, "more than 0")
        require(self, "redundancy", lambda v: v >= 0, "0 or more")
        require(self, "head_dim", lambda v: v >= 1, "at least 1")


PRESETS: dict[str, dict[str, Any]] = {
    # All ours, tried in short runs on CIFAR-10.
    "quick": {
        **{"model": "small", "batch_size": 256, "epochs": 10, "head_dim": 512},
        **{"optimizer": "adamw", "lr": 2e-3, "lr_biases": 2e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def barlow_twins(config: Config, encoder: ImageEncoder) -> Method:
    """The method: an encoder, a wide head, and the correlations of its features between two views."""
    from torch import Tensor

    from xmodal.encoders.heads import batch_norm_mlp
    from xmodal.encoders.image import one_by_one
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import barlow_twins_loss
    from xmodal.sharding import whole

    class BarlowTwins(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            # The BatchNorm without gain and shift that follows in main.py is part of the loss.
            self.projector = batch_norm_mlp(encoder.d, *[config.head_dim] * 3)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {"views": one_by_one(self.towers, batch["views"])}  # (b, 2, d)

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            first, second = (self.projector(view) for view in representations["views"].unbind(1))  # (b, head_dim)
            return barlow_twins_loss(first, second, config.redundancy), {}  # not scaled, as in main.py

        def export(self) -> ImageEncoder:
            return whole(encoder)

        def parameter_groups(self) -> list[dict[str, Any]]:
            weights, others = super().parameter_groups()
            return [weights, {**others, "lr_scale": config.lr_biases / config.lr}]

    return BarlowTwins()


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("barlow_twins", config)
    train, held = open_data(config)
    encoder = open_encoder(config, train)
    data = view_batches(config, this, train, encoder, "barlow_twins")
    return train_and_judge(config, this, barlow_twins(config, encoder), data, Judge(config, train, held))


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train barlow_twins", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
