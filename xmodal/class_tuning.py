"""Fine-tuning an image encoder to tell classes apart: all its weights and a linear layer, on the loop that trains all.

The layer begins as the linear probe of the same labels found it, so that the first steps don't undo the features for a
random layer's sake (Kumar et al. 2022, arXiv:2202.10054), or at 0 where that is no better than chance. Thirty epochs
are lightly's benchmarks'; the other numbers are ours.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal import distributed
from xmodal.data.batches import Quarantine
from xmodal.data.pictures import Part, Pictures
from xmodal.data.view_batches import ViewBatches
from xmodal.data.views import Plain, Views
from xmodal.encoders.image import ImageEncoder
from xmodal.evaluators.linear import Linear
from xmodal.loop import Setting, fit
from xmodal.method import Batch, Method, Progress
from xmodal.objectives.mean import mean_over_rows
from xmodal.report.log import Log, say
from xmodal.schedule import cosine

NEVER = -30.0  # the first logit of a class without pictures: −∞ has no gradient


@dataclass(frozen=True)
class Tuning:
    """batch: pictures in a step over all processes, or as many as there are; lr: the highest, after a tenth of all."""

    epochs: float = 30
    batch: int = 64
    lr: float = 3e-4
    wd: float = 0.01
    augment: str = "photo"
    seed: int = 0
    workers: int = 0


class Classifier(Method):
    """A network with a linear layer on its unit rows, of which each feature has mean 0 and deviation 1 at the start."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: ImageEncoder, start: Linear, rows: Tensor) -> None:
        """rows: (n, d) unit, what `start` was fitted to."""
        super().__init__()
        self.towers = encoder
        mean, deviation = rows.mean(0), rows.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.head = nn.Linear(rows.shape[1], len(start.bias))
        with torch.no_grad():
            self.head.weight.copy_(start.weight * deviation)
            bias = start.bias + start.weight @ mean
            self.head.bias.copy_(torch.where(bias.isinf(), NEVER, bias))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 pixels (b, 3, h, w) -> logits (b, c)."""
        return self.head((F.normalize(self.towers(image), dim=-1) - self.mean) / self.deviation)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        # The loss of each picture and not its features: those are meant to fall into few directions, one a class.
        return {"loss": F.cross_entropy(self(batch["image"][:, 0]).float(), batch["label"], reduction="none")}  # (b,)

    def objective(
        self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        return mean_over_rows(representations["loss"], representations["loss"]), {}

    def export(self) -> ImageEncoder:
        encoder: Any = self.towers
        return encoder


class Tuned:
    """The classifier that came out, asked like any image encoder: its "rows" are logits, (n, c)."""

    def __init__(self, method: Classifier) -> None:
        self.method = method.eval()

    @torch.inference_mode()
    def encode_image(self, images: Any) -> Tensor:
        encoder = self.method.export()
        return self.method(encoder.preparation.stack(images).to(encoder.device)).float().cpu()


def tune(
    encoder: ImageEncoder,
    pictures: Pictures,
    rows: np.ndarray,
    start: Linear,
    features: Tensor,
    tuning: Tuning,
    accelerator: Any,
) -> Tuned:
    """Train the encoder, in place, and a layer on it on some rows of pictures, all of which have a class.

    start: the linear probe of the encoder's features (n, d), unit, from which the layer begins. Every process must call
    it. Raises InputError where a picture in a hundred can't be read.
    """
    source = Part(pictures, rows)
    batch = min(tuning.batch, len(source))
    batch = max(batch // distributed.processes(), 1) * distributed.processes()
    here = distributed.part(batch)
    data = ViewBatches(
        source,
        batch=batch,
        part=(here.start, here.stop),
        seed=tuning.seed,
        views=Views({"image": [Plain(tuning.augment, encoder.preparation)]}),
    )
    method = Classifier(encoder, start, features).to(accelerator.device)
    if (loss := _first_loss(method, data[0][0])) > math.log(len(start.bias)):
        say(f"The network in training is not what the linear probe saw (loss {loss:.1f}): the layer begins at 0.")
        nn.init.zeros_(method.head.weight)
        nn.init.zeros_(method.head.bias)
    steps = max(1, round(tuning.epochs * data.steps_per_epoch))
    say(f"Fine-tuning on {len(source):,} pictures of {pictures.name}: {steps} steps of {batch}.")
    with _folder_of_all() as folder:
        fit(
            method,
            data,
            Setting(steps=steps, seed=tuning.seed, workers=tuning.workers),
            accelerator=accelerator,
            optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=tuning.wd, eps=1e-6),
            lr=cosine(tuning.lr, steps, steps // 10),
            log=Log(folder, accelerator),
            quarantine=Quarantine(folder / "skipped.jsonl", 0.01, len(source)),
        )
    return Tuned(method)


@torch.no_grad()
def _first_loss(method: Classifier, batch: Batch) -> float:
    """The loss of the first global batch as training sees it, when a BatchNorm's statistics are the batch's own.

    In a fresh network these have nothing to do with the ones that it evaluates with.
    """
    twin = copy.deepcopy(method).train()  # whose statistics move
    losses = twin.encode({name: batch[name].to(twin.mean.device) for name in ("image", "label")})["loss"]
    return mean_over_rows(losses, losses).item()


@contextmanager
def _folder_of_all() -> Iterator[Path]:
    """A folder for what the loop writes, the same for all processes, gone afterwards."""
    own = tempfile.mkdtemp(prefix="xmodal-") if distributed.is_first() else None
    folder = Path(distributed.first_says(own))
    try:
        yield folder
        distributed.wait()
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
