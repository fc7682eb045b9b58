"""The latest rows of earlier batches: MoCo's negatives, SwAV's help for small batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal import distributed


class Queue(nn.Module):
    """(k, d) unit rows, the same on every process, the oldest of which each batch replaces.

    It goes round: a batch that doesn't fit before the end goes on at the beginning, so k needn't be a multiple of the
    batch (the reference code demands it, lightly drops what is left over). Rows and place are in the state_dict; a run
    that goes on has the queue it had. At first rows are random, as in MoCo's reference code (moco/builder.py), and the
    same for the same seed; `full` tells when the last of them is gone, before which SwAV doesn't use its queue.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        rows = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rows", F.normalize(rows, dim=1))
        self.register_buffer("seen", torch.tensor(0))  # how many rows have ever come in

    @property
    def full(self) -> bool:
        return self.seen.item() >= len(self.rows)

    @property
    def part(self) -> Tensor:
        """This process's part of the rows, for what counts the rows of all processes (`sinkhorn`)."""
        return self.rows[distributed.part(len(self.rows))]

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Take in the rows (b, d) of all processes in the order of ranks; every process must call it, once a step and
        after the backward pass.

        Raises ValueError for a global batch larger than the queue.
        """
        if rows.ndim != 2 or rows.shape[1] != self.rows.shape[1]:
            raise ValueError(f"rows must be (b, {self.rows.shape[1]}), not {tuple(rows.shape)}")
        every = distributed.all_gather(rows.detach(), distributed.rows(len(rows)))
        if len(every) > len(self.rows):
            raise ValueError(f"A batch of {len(every)} rows doesn't fit into a queue of {len(self.rows)}.")
        places = (self.seen + torch.arange(len(every), device=self.seen.device)) % len(self.rows)
        self.rows[places] = every.to(self.rows)
        self.seen += len(every)
