"""Texts without their padding: rows of about one length go through the text tower together, and no further than they
reach.

CLIP pads every caption to 77 tokens of which a caption has some 16. Where padding takes no part in the result (a causal
tower that reads the end mark, or a tower that masks it) leaving it out is exact; which texts share a batch stays as it
is, for rows are put back into their places before they meet the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NOTHING = -1  # what tokenizers put where a row has no token any more
# What one more group costs, in tokens; measured with ViT-B-32's text tower on two cores, for GPUs estimated from the
# time that launching its kernels takes.
GROUP_COST = {"cpu": 150, "cuda": 8192}


def by_length(tower: Callable[[Tensor], Tensor], tokens: Tensor, at_once: bool = False) -> Tensor:
    """tower(tokens) for rows (b, l) that end in NOTHING, in groups of about one length; (b, …), in the rows' order.

    The tower gets rows cut to the longest of their group, NOTHING included where others are shorter.
    at_once: in one group, for a sharded tower, which every process must call equally often.
    """
    if tokens.is_floating_point() or not len(tokens):
        return tower(tokens)
    lengths = (tokens != NOTHING).sum(1).tolist()
    if min(lengths) == tokens.shape[1]:
        return tower(tokens)
    if at_once:
        return tower(tokens[:, : max(1, max(lengths))])
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # stable: equal lengths keep their order
    bounds = cuts([lengths[row] for row in order], GROUP_COST.get(tokens.device.type, GROUP_COST["cuda"]))
    if len(bounds) == 1:
        return tower(tokens[:, : max(1, max(lengths))])
    places = torch.tensor(order, device=tokens.device)
    parts = [tower(tokens[places[a:b], : max(1, lengths[order[b - 1]])]) for a, b in bounds]
    back = torch.empty_like(places)
    back[places] = torch.arange(len(order), device=tokens.device)
    return torch.cat(parts)[back]


def cuts(lengths: Sequence[int], cost: int) -> list[tuple[int, int]]:
    """Ascending lengths -> bounds of groups with the least sum of (rows × longest + cost) over the groups.

    Groups begin where a length does, so the work is quadratic in the number of different lengths, not of rows.
    """
    starts = [i for i, length in enumerate(lengths) if i == 0 or length != lengths[i - 1]] + [len(lengths)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # for the first j lengths: least sum, and where the last group begins
    for j in range(1, len(starts)):
        longest = lengths[starts[j] - 1]
        best.append(min((best[i][0] + (starts[j] - starts[i]) * longest + cost, i) for i in range(j)))
    bounds, j = [], len(starts) - 1
    while j:
        i = best[j][1]
        bounds.append((starts[i], starts[j]))
        j = i
    return bounds[::-1]
