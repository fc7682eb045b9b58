"""SupCon: an image encoder whose views of a picture are near those of all pictures of its class, then a classifier.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv:2004.11362). First the encoder and a head learn from the
labels by contrast; then the head is thrown away and a linear classifier learns on the frozen encoder (section 3.1).

    xmodal train supcon                                          glyphs by kind, some minutes on two cores
    xmodal train supcon --data cifar10/train.parquet --preset quick
    xmodal train supcon --data FOLDER_OF_CLASS_FOLDERS --model timm:resnet18/random --batch-size 256
    torchrun --nproc_per_node 8 -m xmodal.train.supcon --data imagenet --preset paper --batch-size 768

Expect an accuracy (linear/top1) of about what cross-entropy gives, better where there is much to learn from: the paper
gains a point on ImageNet with 6144 pictures in a batch. The classifier lies in the run folder: `classifier` holds its
weight (c, d) and bias (c,) for unit features, and the names of the classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.cli import guard
from xmodal.config import parse, require
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
    from xmodal.evaluators.evaluate_pictures import Embedding
    from xmodal.evaluators.linear import Linear
    from xmodal.evaluators.scores import Scores
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    # Khosla et al. 2020, section 4.4, and google-research/supcon, scripts/supcon_imagenet_resnet50.sh and its defaults.
    # Its loss is multiplied by the temperature, 0.1, and its decay 1e-3: to LARS, which goes by directions, 1e-2 here.
    model: str = "timm:resnet50/random"
    batch_size: int = 6144
    pictures_per_class: int | Literal["random"] | None = None
    """How many pictures of each class are in a batch: if not given 2, or more where there are too few classes for the
    batch. random: whatever comes, as in the paper, whose batches have some six of each class of ImageNet."""
    epochs: float = 350
    optimizer: Optimizer = "lars"
    lr: float = 0.4
    wd: float = 1e-2
    warmup_epochs: float | None = 12
    temperature: float = 0.1
    """What cosines are divided by."""
    head_dim: int = 128
    """Width of the space in which views are compared."""

    def check(self) -> None:
        super().check()
        require(self, "temperature", lambda v: v > 0, "more than 0")
        require(self, "head_dim", lambda v: v >= 1, "at least 1")
        require(self, "pictures_per_class", lambda v: v == "random" or v >= 2, "at least 2, or random")


PRESETS: dict[str, dict[str, Any]] = {
    # Ours, tried in short runs on CIFAR-10 and not tuned.
    "quick": {
        **{"model": "small", "batch_size": 500, "epochs": 10},
        **{"optimizer": "adamw", "lr": 1e-3, "wd": 0.01, "warmup_epochs": 1},
    },
}


def supcon(config: Config, encoder: ImageEncoder) -> Method:
    """The first stage: one encoder, a head of two layers, every view finds all views of its class."""
    from torch import Tensor, nn
    from torch.nn.functional import normalize

    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import sup_con_loss
    from xmodal.sharding import whole

    class SupCon(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            # Section 3.1: a hidden layer of the encoder's width, 2048; no BatchNorm. As in google-research/supcon,
            # projection_head.py, biases begin at 0 and the last layer has none.
            first, last = nn.Linear(encoder.d, encoder.d), nn.Linear(encoder.d, config.head_dim, bias=False)
            nn.init.zeros_(first.bias)
            self.head = nn.Sequential(first, nn.ReLU(), last)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return {"views": self.towers(batch["views"])}  # (b, 2, d)

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            return {"label": batch["label"]}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            # Section 3.1: the encoder's features are unit rows before the head, too (models.py; HobbitLong's aren't).
            features = normalize(representations["views"], dim=-1)  # (b, 2, d) unit
            rows = normalize(self.head(features), dim=-1)  # (b, 2, head_dim) unit
            return sup_con_loss(rows.flatten(0, 1), targets["label"].repeat_interleave(2), config.temperature), {}

        def export(self) -> ImageEncoder:
            return whole(encoder)

    return SupCon()


class Classifier:
    """The second stage: a linear classifier of the frozen encoder's features, from all training pictures.

    The paper trains it by SGD on views of pictures; here each picture is embedded once and the classifier solved for.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.fitted: Linear | None = None

    def __call__(self, train: Embedding, test: Embedding) -> tuple[dict[str, Any], Scores]:
        """Fit it to one part and ask it about the other: protocol and scores "linear/top1" …"""
        from xmodal.evaluators.evaluate_pictures import score_answers
        from xmodal.evaluators.linear import class_ranks, fit_linear

        own = test.labels[test.labelled]
        self.fitted = fit_linear(train.rows[train.labelled], train.labels[train.labelled], classes=len(self.classes))
        scores, _ = score_answers(*class_ranks(self.fitted(test.rows[test.labelled]), own), own, len(self.classes))
        told = (
            f"logistic regression on the voters' unit rows; penalty {self.fitted.penalty:.3g}, found on a part of them"
        )
        return {"linear": told}, {f"linear/{name}": score for name, score in scores.items()}

    def save(self, folder: Path) -> None:
        """weights.safetensors: weight (c, d) and bias (c,), of unit features; classes.json: the c names."""
        from xmodal.weights import save_tensors

        assert self.fitted is not None
        folder.mkdir(exist_ok=True)
        tensors = {"weight": self.fitted.weight.cpu(), "bias": self.fitted.bias.cpu()}
        save_tensors(tensors, folder / "weights.safetensors")
        (folder / "classes.json").write_text(json.dumps(list(self.classes), indent=1))


def run(config: Config) -> dict[str, Any]:
    """Train both stages and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import distributed
    from xmodal import run as runs

    this = runs.begin("supcon", config)
    train, held = open_data(config)
    train = with_classes_only(train, "supcon")
    encoder = open_encoder(config, train)
    k = None if config.pictures_per_class == "random" else config.pictures_per_class or at_least(2)
    # The views that HobbitLong/SupContrast, main_supcon.py, has for CIFAR; on ImageNet the paper has AutoAugment.
    data = view_batches(config, this, train, encoder, "moco_v2", k)
    classifier = Classifier(train.classes)
    told = train_and_judge(config, this, supcon(config, encoder), data, Judge(config, train, held, classifier))
    if classifier.fitted is not None and distributed.is_first():
        classifier.save(this.folder / "classifier")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train supcon", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
