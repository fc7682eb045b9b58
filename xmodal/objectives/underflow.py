"""Rows and columns whose negatives vanish beside the common reference, taken again relative to their own maximum.

There are few: for unit rows, those of which every negative lies 130 below the largest logit that could be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.sums import Sums

LOW = 60.0  # sums below exp(−60) are taken again: beyond that their share of a tile would overflow
BLOCK = 2**22  # logits at a time, 32 MiB


def take_again(
    ours: Tensor,
    others: Tensor,
    scale: float,
    reference: float,
    own: Tensor,
    other: Tensor,
    sums: Sums,
    total: int | None = None,
) -> Tensor:
    """Mend `sums.log_negatives` of ours where they fell too low; returns which, (k,) long.

    own, other: (p,) places among ours and others that are no negatives. total: where the others are only this
    process's part, how many there are on all; the processes' sums are then put together.
    """
    taken = torch.bincount(own, minlength=len(ours))
    if total is not None:
        distributed.all_reduce(taken)
    full = len(others) if total is None else total
    again = ((sums.log_negatives < reference - LOW) & (taken < full)).nonzero().squeeze(1)
    for some, logits in _blocks(again, ours, others, scale, own, other):
        none = logits.new_full((len(some), 1), -math.inf)  # a process may have no rows
        top = torch.cat([none, logits], 1).amax(1)
        if total is not None:
            distributed.all_reduce(top, "max")
        added = logits.sub_(top[:, None]).exp_().sum(1)
        if total is not None:
            distributed.all_reduce(added)
        sums.log_negatives[some] = added.log() + top
    return again


def add_gradients(
    again: Tensor,
    ours: Tensor,
    others: Tensor,
    scale: float,
    own: Tensor,
    other: Tensor,
    log_all: Tensor,
    weight: Tensor,
    to_ours: Tensor,
    to_others: Tensor,
) -> None:
    """What the negatives of those rows give; weight: (n,) float64, what each of our losses counts."""
    for some, logits in _blocks(again, ours, others, scale, own, other):
        gradient = logits.sub_(log_all[some, None]).exp_().mul_(weight[some, None]).to(to_ours.dtype)
        to_ours[some] += gradient @ others.to(to_ours.dtype)
        to_others += gradient.T @ ours[some].to(to_ours.dtype)


def _blocks(
    again: Tensor, ours: Tensor, others: Tensor, scale: float, own: Tensor, other: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(k,) of `again` and their logits with all others in float64, (k, n); −inf at places."""
    number = torch.full((len(ours),), -1, device=ours.device)
    for some in again.split(max(1, BLOCK // max(1, len(others)))) if len(again) else ():
        rows = ours[some].double() * scale
        parts = [rows @ part.double().T for part in others.split(4096)]
        logits = torch.cat([rows.new_empty(len(some), 0), *parts], 1)
        number[some] = torch.arange(len(some), device=ours.device)
        inside = number[own] >= 0
        logits[number[own[inside]], other[inside]] = -math.inf
        number[some] = -1
        yield some, logits
