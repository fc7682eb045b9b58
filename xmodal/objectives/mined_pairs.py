"""Pairs of a batch for losses of pairs, which the same miners choose that choose triplets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.errors import nearest
from xmodal.objectives.triplet import MINERS, Block, Mining, blocks, drawn, hard, semi_hard


class MinedPairs(NamedTuple):
    """Numbers of rows among those of all processes, (p,) long each, and whether they are of one class, (p,) bool."""

    first: Tensor
    second: Tensor
    same: Tensor


@torch.no_grad()
def mined_pairs(
    features: Tensor, labels: Tensor, *, mining: Mining = "all", margin: float = 0.2, seed: int = 0
) -> MinedPairs:
    """Pairs whose first row is one of this process; those of all processes are the pairs of the global batch.

    features: (b, d), labels: (b,) long; b may differ between processes. Of each row are taken
    "all": the pairs with every row after it, so that each comes once: n (n − 1) / 2 of n rows in all;
    "random": one with its class and one with another, by the seed and its number in the global batch;
    "hard": those with the furthest of its class and the nearest of another;
    "semi_hard": both pairs of every semi-hard triplet, see `triplet_loss`; the margin has a part in no other.
    A row without its class, or without another, has no such pair. Raises ValueError for an unknown mining.
    """
    if mining not in MINERS:
        raise ValueError(f"there is no mining {mining!r}; {nearest(mining, MINERS)}")
    spread = distributed.rows(len(features))
    every = distributed.all_gather(features.detach(), spread).double()
    nothing = torch.empty(0, dtype=torch.long, device=features.device)
    found = [(nothing, nothing, nothing.bool())]
    for anchors, block in blocks(every, labels, spread, margin, seed):
        found += [(anchors[row], other, same) for row, other, same in _mined(anchors, block, mining)]
    return MinedPairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _mined(anchors: Tensor, block: Block, mining: Mining) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows of the block, numbers of their partners and whether they are of one class."""
    if mining == "all":
        after = torch.arange(block.distance.shape[1], device=anchors.device) > anchors[:, None]
        row, other = after.nonzero(as_tuple=True)
        return [(row, other, block.positive[row, other])]
    if mining == "semi_hard":
        mined, negative = semi_hard(block)
        row, positive = mined.nonzero(as_tuple=True)
        places = positive, negative[row, positive]
        return [
            (row, other, torch.full_like(row, same, dtype=torch.bool))
            for other, same in zip(places, (1, 0), strict=True)
        ]
    pairs = []
    for places, there, same in zip(
        (hard if mining == "hard" else drawn)(block), (block.positive, block.negative), (1, 0), strict=True
    ):
        row = there.any(1).nonzero()[:, 0]
        pairs.append((row, places[row, 0], torch.full_like(row, same, dtype=torch.bool)))
    return pairs
