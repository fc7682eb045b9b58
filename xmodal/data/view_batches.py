"""Batches of views: which pictures, and what is made of each, as functions of the seed and the step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.order import draws, positions_of_step, steps_per_epoch
from xmodal.data.orders import Order, order_of
from xmodal.data.pictures import Pictures
from xmodal.data.stand_ins import Skipped, read_pictures
from xmodal.data.views import Views


class ViewBatches(Dataset):
    """Step -> this process's part of the global batch, and the rows that were skipped for it.

    part: first and last row (excluded) of the global batch that this process takes.
    order: which picture stands where, such as a ClassOrder; if not given, all come at random, once an epoch.
    """

    def __init__(
        self,
        source: Pictures,
        *,
        batch: int,
        part: tuple[int, int],
        seed: int,
        views: Views,
        order: Order | None = None,
    ) -> None:
        self.source, self.global_batch, self.part, self.seed = source, batch, part, seed
        self.views, self.order = views, order or order_of(source)
        self.steps_per_epoch = steps_per_epoch(len(self.order), batch)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        """A flat dict: views (b, v, 3, h, w) uint8, maybe crops, too; row (b,) long; and label (b,) long, −1 for none,
        where pictures have classes. A stand-in for a picture that can't be read has its own row and label.
        """
        epoch, positions = positions_of_step(step, len(self.order), self.global_batch, self.part)
        rows = self.order.rows(positions, self.seed, epoch)
        numbers = draws(self.seed, epoch, positions, self.views.draws)
        decoders = self.views.decoders(numbers)
        pictures, rows, skipped = read_pictures(self.source, rows, positions, epoch, self.seed, decoders)
        batch = self.views(pictures, numbers)
        batch["row"] = torch.from_numpy(rows)
        if self.source.labels is not None:
            batch["label"] = torch.from_numpy(self.source.labels[rows])
        return batch, skipped
