"""Metric learning: pictures of a class lie near each other and far from those of others, by triplets or by pairs.

--objective triplet   an anchor is nearer to its class than to others by a margin (Schroff et al. 2015, FaceNet,
                      arXiv:1503.03832; Hermans et al. 2017, arXiv:1703.07737)
--objective n_pair    an anchor finds the one of its class among one of each (Sohn 2016, NeurIPS)
--objective margin    pairs of a class are drawn together, others pushed apart up to a margin (Hadsell et al. 2006)
--objective logistic  the sigmoid of a scaled cosine plus a bias says whether a pair is of one class

    xmodal train metric                                          glyphs by kind, some minutes on two cores
    xmodal train metric --data cifar10/train.parquet --preset quick --objective margin
    xmodal train metric --data cars --objective n_pair --batch-size 120
    torchrun --nproc_per_node 8 -m xmodal.train.metric --data products.csv --preset paper

A batch holds some classes with several pictures of each. Which of its triplets or pairs count is said by --mining:
FaceNet's semi-hard negatives are further than the positive, but not by the margin; hard ones are the nearest, on which
an untrained network may collapse. Expect R@1, the share of pictures whose nearest neighbour is of their class, well
above that of the network before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError
from xmodal.pretrain import (
    Judge,
    Optimizer,
    Pretraining,
    at_least,
    open_data,
    open_encoder,
    train_and_judge,
    view_batches,
    with_classes_only,
)

if TYPE_CHECKING:
    from xmodal.encoders.image import ImageEncoder
    from xmodal.method import Method
    from xmodal.objectives.triplet import Mining

# Triplets: FaceNet, section 3.1. Pairs of unit rows: Hadsell et al.'s 1, which is sentence-transformers' cosine of 1/2.
MARGINS = {"triplet": 0.2, "margin": 1.0}
MINED = {"triplet": "semi_hard", "margin": "all", "logistic": "all"}


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    # Hermans et al. 2017, section 4.2: ResNet-50 with weights, 18 classes × 4 pictures, Adam at 3e-4 without decay, 128
    # numbers a picture, 25,000 steps, which are 139 epochs of Market-1501. Here the rate is that of a batch of 256.
    model: str = "timm:resnet50"
    objective: Literal["triplet", "n_pair", "margin", "logistic"] = "triplet"
    """Triplets, pairs of all classes at once, or pairs by themselves."""
    mining: Literal["auto", "random", "hard", "semi_hard", "all"] = "auto"
    """Which triplets, or pairs, of a batch: one of each picture at random, the hardest of each, all semi-hard ones, or
    all. auto: semi_hard for triplets, all for pairs. n_pair has none."""
    batch_size: int = 72
    pictures_per_class: int | None = None
    """How many pictures of each class are in a batch. If not given 4, or 2 for n_pair, or more where there are too few
    classes for the batch. n_pair makes several tuples of more, one pair of each class in every one."""
    embed_dim: int = 128
    """Numbers a picture: the width of the linear layer behind --model, which is kept."""
    margin: float | None = None
    """By how much, of unit rows: 0.2 for triplets, 1 for margin, if not given."""
    # Sohn 2016 gives no number. TensorFlow's npairs_loss (contrib, metric_loss_ops.py) has 0.002, of which a quarter
    # counts for the squares of anchors and a quarter for those of positives.
    norm_weight: float = 0.001
    """Of n_pair, whose rows have any length: how much the mean of their squares counts."""
    epochs: float = 139
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    wd: float = 0.0

    def check(self) -> None:
        super().check()
        require(self, "embed_dim", lambda v: v >= 1, "at least 1")
        require(self, "margin", lambda v: v > 0, "more than 0")
        require(self, "norm_weight", lambda v: v >= 0, "0 or more")
        require(self, "pictures_per_class", lambda v: v >= 2, "at least 2")
        if self.objective == "n_pair" and self.mining != "auto":
            raise InputError(f"--mining {self.mining} has no place here: n_pair takes all pairs of a tuple.")
        if self.objective == "n_pair" and self.pictures_per_class is not None and self.pictures_per_class % 2:
            raise InputError(f"--pictures-per-class {self.pictures_per_class}: n_pair needs pairs, an even number.")


PRESETS: dict[str, dict[str, Any]] = {
    # Ours, tried in short runs on CIFAR-10: with 240 pictures all ten classes are in a batch, 24 of each. Of N-pairs
    # that is twelve tuples; one by one, with the rate of a batch of 20, they taught nothing in 300 steps.
    "quick": {
        **{"model": "small", "batch_size": 240, "epochs": 10},
        **{"optimizer": "adamw", "lr": 1e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def metric(config: Config, encoder: ImageEncoder, k: int = 2) -> Method:
    """The method: the encoder with its embedding, and one of four losses over the global batch.

    k: pictures of each class in a batch, side by side.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal import distributed
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import logistic_loss, margin_loss, mined_pairs, n_pair_loss, triplet_loss
    from xmodal.sharding import whole

    margin: Any = config.margin or MARGINS.get(config.objective, 0.2)
    mining: Mining = MINED.get(config.objective) if config.mining == "auto" else config.mining  # pyright: ignore

    class Metric(Method):
        empty: Tensor  # how many batches so far had no triplet and no pair with a loss

        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            self.register_buffer("empty", torch.zeros((), dtype=torch.long))
            if config.objective == "logistic":  # so that at first a cosine of 1/2 is undecided
                self.log_scale = nn.Parameter(torch.tensor(10.0).log())
                self.bias = nn.Parameter(torch.tensor(-5.0))

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {"rows": self.towers(batch["views"][:, 0])}  # (b, embed_dim)

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            return {"label": batch["label"]}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            loss = self.loss(representations["rows"], targets["label"], progress.step)
            self.empty += (loss.detach() == 0).long()
            return loss, {"empty_batches": self.empty.clone()}

        def loss(self, rows: Tensor, label: Tensor, step: int) -> Tensor:
            unit = normalize(rows, dim=1)
            if config.objective == "triplet":
                return triplet_loss(unit, label, margin=margin, mining=mining, seed=step)
            if config.objective == "n_pair":
                return self.tuples(rows, label)
            pairs = mined_pairs(unit, label, mining=mining, margin=margin, seed=step)
            every = distributed.gather(unit)
            first, second = every.index_select(0, pairs.first), every.index_select(0, pairs.second)
            if config.objective == "margin":
                return margin_loss(first, second, pairs.same, margin=margin)
            return logistic_loss(first, second, pairs.same, self.log_scale.exp(), self.bias)

        def tuples(self, rows: Tensor, label: Tensor) -> Tensor:
            """The mean over k / 2 tuples of one pair of each class, so that no negative is of the anchor's class.

            A pair may be on two processes; one that a stand-in for a bad picture has broken is left out.
            """
            every = distributed.gather(rows).unflatten(0, (-1, k // 2, 2))  # (classes, k / 2, 2, embed_dim)
            whole_pairs = distributed.gather(label).view(-1, k // 2, 2).diff()[..., 0] == 0  # (classes, k / 2)
            losses = []
            for pairs, there in zip(every.unbind(1), whole_pairs.unbind(1), strict=True):
                pairs = pairs[there]
                anchor, positive = pairs[distributed.part(len(pairs))].unbind(1)
                losses.append(n_pair_loss(anchor, positive, norm_weight=config.norm_weight))
            return torch.stack(losses).mean()

        def export(self) -> ImageEncoder:
            return whole(encoder)

    return Metric()


def shorten(encoder: ImageEncoder, d: int) -> None:
    """Begin N-pairs with rows of about unit length: of a fresh layer ‖z‖² is about d / 6, for torch gives each number a
    third of the features' mean square, which is about a half. Their raw products are so far apart that the softmax is
    all but sure, and wrong, and training only unlearns: CIFAR-10's k-NN is at 25.7 after 60 steps and so at 30.9.
    """
    layer: Any = encoder.image
    for p in layer.head.parameters():
        p.data.mul_(min(1.0, (6 / d) ** 0.5))


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs
    from xmodal.encoders.image import with_embedding
    from xmodal.evaluators.same_class import score_same_class
    from xmodal.report.log import say

    this = runs.begin("metric", config)
    train, held = open_data(config)
    train = with_classes_only(train, "metric")
    encoder = with_embedding(open_encoder(config, train), config.embed_dim)
    if config.objective == "n_pair":
        shorten(encoder, config.embed_dim)
    k = config.pictures_per_class or (at_least(2, step=2) if config.objective == "n_pair" else at_least(4))
    data = view_batches(config, this, train, encoder, "photo" if train.photographs else "drawing", k, single=True)
    order: Any = data.order
    method: Any = metric(config, encoder, order.k)
    told = train_and_judge(config, this, method, data, Judge(config, train, held, score_same_class))
    if n := method.empty.item():
        say(f"{n} batches had no triplet or pair with a loss, and taught nothing.")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train metric", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
