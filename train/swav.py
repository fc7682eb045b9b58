"""SwAV: an image encoder that predicts, from one crop of a picture, to which prototypes another crop is assigned.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (arXiv:2006.09882). Two
large crops are assigned to prototypes, shared out evenly over the batch (Sinkhorn-Knopp); each other crop, six small
ones among them, is to predict the assignment. What is kept is the encoder.

    xmodal train swav                                            glyphs, two views each, some minutes on two cores
    xmodal train swav --data cifar10/train.parquet --preset quick
    torchrun --nproc_per_node 8 -m xmodal.train.swav --data imagenet --preset paper --batch-size 512
    torchrun --nproc_per_node 8 -m xmodal.train.swav --data imagenet --preset paper --batch-size 32 --epochs 200 \\
        --lr 0.6 --warmup-epochs 0 --queue 3840 --frozen-steps 5005

The last is the README's way with small batches. A loss that stays at ln(prototypes) is a collapse: a lower --epsilon
and more --frozen-steps help, it says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.pretrain import (
    Judge,
    Optimizer,
    Pretraining,
    check_queue,
    open_data,
    open_encoder,
    train_and_judge,
    view_batches,
)

if TYPE_CHECKING:
    from xmodal.encoders.image import ImageEncoder
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    # facebookresearch/swav, scripts/swav_800ep_pretrain.sh and main_swav.py, whose rate of 4.8 is for a batch of 4096.
    model: str = "timm:resnet50/random"
    batch_size: int = 4096
    epochs: float = 800
    optimizer: Optimizer = "lars"
    lr: float = 0.3
    wd: float = 1e-6
    warmup_epochs: float | None = 10
    temperature: float = 0.1
    """What cosines with prototypes are divided by for a prediction."""
    epsilon: float = 0.05
    """The same for an assignment; the less, the harder it is."""
    prototypes: int = 3000
    """How many there are; the paper finds that from a thousand on their number matters little."""
    frozen_steps: int = 313
    """Steps in which the prototypes stay where they began; an epoch with a batch of 4096."""
    queue: int = 0
    """How many rows of earlier batches help to share the prototypes evenly, for batches that are small beside them."""
    queue_from_epoch: int = 15
    """The epoch from which the queue is filled; it is used once it is full."""
    hidden_dim: int = 2048
    """Width of the hidden layer of the head."""
    head_dim: int = 128
    """Width of the space that prototypes are in."""

    def check(self) -> None:
        super().check()
        for name in ("temperature", "epsilon"):
            require(self, name, lambda v: v > 0, "more than 0")
        for name in ("prototypes", "hidden_dim", "head_dim"):
            require(self, name, lambda v: v >= 1, "at least 1")
        for name in ("frozen_steps", "queue", "queue_from_epoch"):
            require(self, name, lambda v: v >= 0, "0 or more")


PRESETS: dict[str, dict[str, Any]] = {
    # All ours, tried in short runs on CIFAR-10. Prototypes fewer than pictures in a batch need no queue. With the
    # paper's epsilon the loss stays at ln(prototypes), with 0.02 it falls slowly.
    "quick": {
        **{"model": "small", "batch_size": 256, "epochs": 10, "prototypes": 100, "epsilon": 0.01, "frozen_steps": 50},
        **{"hidden_dim": 512, "optimizer": "adamw", "lr": 2e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def swav(config: Config, encoder: ImageEncoder) -> Method:
    """The method: an encoder, a head, prototypes, and for small batches a queue for each of the two large crops."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal.encoders.heads import batch_norm_mlp
    from xmodal.encoders.prototypes import Prototypes
    from xmodal.encoders.queue import Queue
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import sinkhorn, swav_loss
    from xmodal.sharding import whole

    class SwAV(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            self.projector = batch_norm_mlp(encoder.d, config.hidden_dim, config.head_dim, bias=True)
            self.prototypes = Prototypes(config.prototypes, config.head_dim)
            seeds = (2 * config.seed, 2 * config.seed + 1) if config.queue else ()
            self.queues: Any = nn.ModuleList(Queue(config.queue, config.head_dim, seed) for seed in seeds)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            """Crops of one size go through the encoder together: views (b, 2, d), and crops (b, 6, d) if there are."""
            return {name: self.towers(batch[name]) for name in ("views", "crops") if name in batch}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            features = torch.cat(list(representations.values()), 1)  # (b, v, d), the large crops first
            rows = normalize(self.projector(features.flatten(0, 1)), dim=1).unflatten(0, features.shape[:2])
            scores = self.prototypes(rows, fixed=progress.step < config.frozen_steps)  # (b, v, prototypes)
            targets["rows"] = rows[:, :2].detach()  # for the queues, (b, 2, head_dim) unit
            return swav_loss(scores, self.codes(scores[:, :2]), temperature=config.temperature), {}

        @torch.no_grad()
        def codes(self, scores: Tensor) -> Tensor:
            """The assignments of the large crops, (b, 2, prototypes) -> the same shape."""
            found = []
            for i, of_crop in enumerate(scores.unbind(1)):
                earlier = [self.prototypes(queue.part) for queue in self.queues[i : i + 1] if queue.full]
                found.append(sinkhorn(torch.cat([of_crop, *earlier]), config.epsilon)[: len(of_crop)])
            return torch.stack(found, 1)

        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            self.prototypes.normalise()
            if progress.epoch >= config.queue_from_epoch:
                for queue, rows in zip(self.queues, targets["rows"].unbind(1), strict=False):
                    queue.enqueue(rows)

        def export(self) -> ImageEncoder:
            return whole(encoder)

        def parameter_groups(self) -> list[dict[str, Any]]:
            """main_swav.py: weight decay and LARS's adaptation are of all, gains and biases too."""
            return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    return SwAV()


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("swav", config)
    train, held = open_data(config)
    encoder = open_encoder(config, train)
    data = view_batches(config, this, train, encoder, "swav")
    check_queue(config.queue, data)
    return train_and_judge(config, this, swav(config, encoder), data, Judge(config, train, held))


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train swav", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
