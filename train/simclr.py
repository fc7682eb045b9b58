"""SimCLR: an image encoder that tells two views of a picture from the views of all other pictures of a batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709). What is
kept is the encoder; the projection head, in whose space views are compared, is thrown away (section 4.2).

    xmodal train simclr                                          glyphs, a few minutes on two cores
    xmodal train simclr --data cifar10/train.parquet --preset quick
    xmodal train simclr --data FOLDER --model timm:resnet18/random --batch-size 256
    torchrun --nproc_per_node 8 -m xmodal.train.simclr --data imagenet --preset paper --batch-size 512

Expect features whose nearest neighbours are of the same class more often than before training, though no class was
told. It lives on large batches and long training: the paper's best has 4096 for 1000 epochs.
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
    # Chen et al. 2020, section 2.3 and appendix A; google-research/simclr, run.py and README.
    model: str = "timm:resnet50/random"
    batch_size: int = 4096
    epochs: float = 100
    optimizer: Optimizer = "lars"
    lr: float = 0.3
    wd: float = 1e-6
    warmup_epochs: float | None = 10
    temperature: float = 0.1
    """What cosines are divided by (table 5; 0.5 is best for CIFAR-10, appendix B.9)."""
    head_dim: int = 128
    """Width of the space in which views are compared."""

    def check(self) -> None:
        super().check()
        require(self, "temperature", lambda v: v > 0, "more than 0")
        require(self, "head_dim", lambda v: v >= 1, "at least 1")


PRESETS: dict[str, dict[str, Any]] = {
    # Measured on CIFAR-10; see the README. After two of ten epochs k-NN is at 42.9 with a temperature of 0.2, with 0.5,
    # which is best after a thousand (appendix B.9), at 38.4.
    "quick": {
        **{"model": "small", "batch_size": 512, "epochs": 10, "temperature": 0.2},
        **{"optimizer": "adamw", "lr": 1e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def simclr(config: Config, encoder: ImageEncoder) -> Method:
    """The method: one encoder, a projection head of two layers, NT-Xent over both views of the global batch."""
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal.encoders.batch_norm import BatchNorm
    from xmodal.encoders.heads import batch_norm_mlp
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import nt_xent_loss
    from xmodal.sharding import whole

    class SimCLR(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            # model_util.py, projection_head: both layers are followed by a BatchNorm, the last one without a shift.
            # The paper's section 3 has two layers and no BatchNorm; the code trains better, and its results are these.
            last = BatchNorm(config.head_dim)
            last.bias.requires_grad_(False)
            self.head = nn.Sequential(*batch_norm_mlp(encoder.d, encoder.d, config.head_dim), last)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {"views": self.towers(batch["views"])}  # (b, 2, d)

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            views = representations["views"]  # (b, 2, d)
            rows = normalize(self.head(views.flatten(0, 1)), dim=-1).unflatten(0, (-1, 2))  # (b, 2, head_dim) unit
            return nt_xent_loss(rows[:, 0], rows[:, 1], config.temperature), {}

        def export(self) -> ImageEncoder:
            return whole(encoder)

    return SimCLR()


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("simclr", config)
    train, held = open_data(config)
    encoder = open_encoder(config, train)
    data = view_batches(config, this, train, encoder, "simclr")
    return train_and_judge(config, this, simclr(config, encoder), data, Judge(config, train, held))


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train simclr", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
