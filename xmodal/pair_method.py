"""What methods over an image and a text tower have in common: how pairs are encoded, and what comes out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xmodal.encoders.average import Average
from xmodal.encoders.trainable import parameter_groups
from xmodal.encoders.two_tower import TwoTower
from xmodal.finetune import FineTuning, Towers
from xmodal.method import Batch, Method, Progress


class Pairs(NamedTuple):
    """Rows of this process that belong together, an image once beside each of its captions, and their ids."""

    image: Tensor  # (b, d) unit
    text: Tensor  # (b, d) unit
    image_id: Tensor  # (b,) long
    text_id: Tensor  # (b,) long


class PairMethod(Method):
    """Both towers, a learnable scale of the cosines, the average of the weights; a recipe adds the objective.

    log_scale: where the logarithm of the scale begins.
    """

    towers: TwoTower

    def __init__(self, config: FineTuning, opened: Towers, log_scale: Tensor) -> None:
        super().__init__()
        self.opened, self.towers = opened, opened.module
        self.log_scale = nn.Parameter(log_scale.clone())
        self.average = Average(self.towers, config.ema) if config.ema is not None else None
        self.rates = {"layer_decay": config.layer_decay, "backbone_lr": config.backbone_lr}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        views = {"views": batch["views"]} if "views" in batch else {}
        if "text_there" not in batch:
            return self.towers(image=batch["image"], text=batch["text"], **views)  # (b, d) unit; text may be (b, k, d)
        there = batch["text_there"]  # (b, k): only texts that are there are encoded
        rows = self.towers(image=batch["image"], text=batch["text"][there], **views)  # (b, d) and (m, d) unit
        places = rows["text"].new_zeros(*there.shape, rows["text"].shape[-1])
        return {**rows, "text": places.index_put((there,), rows["text"])}

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        names = ("image_id", "text_id", "text_there", "teacher_image", "teacher_text")
        return {name: batch[name] for name in names if name in batch}

    def pairs(self, representations: dict[str, Tensor], targets: dict[str, Tensor]) -> Pairs:
        """What the objective compares; an image is a positive of all its captions."""
        image, text = self.one_each(representations["image"], representations["text"], targets)
        return Pairs(image, text, *self.one_each(targets["image_id"], targets["text_id"], targets))

    @staticmethod
    def one_each(of_images: Tensor, of_texts: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What images have, (b, …), and texts, (b, …) or (b, k, …), with an image's once beside that of each text."""
        text_id = targets["text_id"]
        if text_id.ndim == 1:
            return of_images, of_texts
        there = targets.get("text_there", torch.ones_like(text_id, dtype=torch.bool))  # (b, k)
        return of_images.repeat_interleave(there.sum(1), 0), of_texts[there]

    @torch.no_grad()
    def after_step(self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress) -> None:
        if self.average is not None:
            self.average.follow(self.towers, progress.step)

    def export(self) -> TwoTower:
        trained: Any = self.towers if self.average is None else self.average.module
        trained.log_scale.copy_(self.log_scale.detach())
        return self.opened.finished(trained)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self, self.towers, **self.rates)
