"""MoCo v2: an image encoder that finds a picture's other view among thousands of earlier pictures, kept in a queue.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv:1911.05722), with the head,
the views and the cosine of Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning"
(arXiv:2003.04297). The other view and the queue are what a teacher sees, which follows the encoder slowly: so keys of
many steps ago can still be compared with. What is kept is the encoder.

    xmodal train moco                                            glyphs, some minutes on two cores
    xmodal train moco --data cifar10/train.parquet --preset quick
    torchrun --nproc_per_node 8 -m xmodal.train.moco --data imagenet --preset paper --batch-size 32

Unlike SimCLR it does with small batches, for negatives come from the queue. The reference code shuffles pictures among
GPUs, so that the statistics in a GPU's BatchNorms don't tell which key is whose. Here they are those of the global
batch, SimCLR's remedy (section 2.2 there).
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
    # facebookresearch/moco, main_moco.py and README (--mlp --moco-t 0.2 --aug-plus --cos); 256 is over all GPUs.
    model: str = "timm:resnet50/random"
    batch_size: int = 256
    epochs: float = 200
    optimizer: Optimizer = "sgd"
    lr: float = 0.03
    wd: float = 1e-4
    temperature: float = 0.2
    """What cosines are divided by; 0.07 in MoCo v1."""
    momentum: float = 0.999
    """How much of the teacher stays in a step."""
    queue: int = 65536
    """How many keys of earlier batches are the negatives."""
    head_dim: int = 128
    """Width of the space in which views are compared."""

    def check(self) -> None:
        super().check()
        require(self, "temperature", lambda v: v > 0, "more than 0")
        require(self, "momentum", lambda v: 0 <= v < 1, "at least 0, less than 1")
        require(self, "queue", lambda v: v >= 1, "at least 1")
        require(self, "head_dim", lambda v: v >= 1, "at least 1")


PRESETS: dict[str, dict[str, Any]] = {
    # Queue, momentum and temperature are those of MoCo's own demo on CIFAR-10 (colab/moco_cifar10_demo.ipynb); the rest
    # is ours, tried in short runs on CIFAR-10.
    "quick": {
        **{"model": "small", "epochs": 10, "queue": 4096, "momentum": 0.99, "temperature": 0.1},
        **{"optimizer": "adamw", "lr": 2e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def moco(config: Config, encoder: ImageEncoder) -> Method:
    """The method: an encoder with a head, a teacher of both that follows, and a queue of what the teacher saw."""
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal.encoders.queue import Queue
    from xmodal.encoders.teacher import Teacher
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import moco_loss
    from xmodal.objectives.arguments import exact
    from xmodal.sharding import whole

    class MoCo(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            # moco/builder.py: a hidden layer as wide as the features, no BatchNorm.
            self.head = nn.Sequential(nn.Linear(encoder.d, encoder.d), nn.ReLU(), nn.Linear(encoder.d, config.head_dim))
            self.teacher, self.teacher_head = Teacher(self.towers), Teacher(self.head)
            self.queue = Queue(config.queue, config.head_dim, config.seed)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            query = self.head(self.towers(batch["views"][:, 0]))
            return {"query": normalize(exact(query), dim=1)}  # (b, head_dim) unit

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            key = self.teacher_head(self.teacher(batch["views"][:, 1]))
            return {"key": normalize(exact(key), dim=1)}  # (b, head_dim) unit

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            query, key = representations["query"], targets["key"]
            return moco_loss(query, key, self.queue.rows, temperature=config.temperature), {}

        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            # The reference moves the teacher before it sees the next keys, which is the same.
            self.teacher.follow(self.towers, config.momentum)
            self.teacher_head.follow(self.head, config.momentum)
            self.queue.enqueue(targets["key"])

        def export(self) -> ImageEncoder:
            return whole(encoder)

        def parameter_groups(self) -> list[dict[str, Any]]:
            """main_moco.py: weight decay is of all, gains and biases too."""
            return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    return MoCo()


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("moco", config)
    train, held = open_data(config)
    encoder = open_encoder(config, train)
    data = view_batches(config, this, train, encoder, "moco_v2")
    check_queue(config.queue, data)
    return train_and_judge(config, this, moco(config, encoder), data, Judge(config, train, held))


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train moco", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
