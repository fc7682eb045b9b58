"""Triplets: an anchor lies nearer to a row of its class than to one of another, by a margin.

Schroff et al. 2015, "FaceNet" (arXiv:1503.03832), equation 1 and section 3.2; Hermans et al. 2017, "In Defense of the
Triplet Loss for Person Re-Identification" (arXiv:1703.07737), equations 5 and 6.

Distances are computed in blocks of rows against all, mined, and dropped. In each block mining comes down to how the
loss changes with every distance in it, from which the gradient of rows follows at once, so the backward pass has
nothing left to do. N rows of width D take 6 · N² · D operations, 2 · N² · D where each anchor has one triplet, and no
more memory than a few blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.errors import nearest

BLOCK = 2**20  # distances at a time: 8 MB, of which mining needs a few
ROUNDING = 16 * torch.finfo(torch.float64).eps

Mining = Literal["semi_hard", "hard", "all", "random"]


def triplet_loss(
    features: Tensor, labels: Tensor, *, margin: float = 0.2, mining: Mining = "semi_hard", seed: int = 0
) -> Tensor:
    """The mean of d(a, p) − d(a, n) + margin over those mined triplets of which it is above 0; d is Euclidean.

    features: (b, d); unit rows if the margin is to mean the same throughout. labels: (b,) long. Anchor, positive and
    negative are rows of the global batch; b may differ between processes. Triplets are mined among
    "semi_hard": each anchor and positive with the nearest negative that is further than the positive, if it lies
        within the margin, d(a, p) < d(a, n) < d(a, p) + margin (FaceNet's). Others take the furthest negative where
        all are nearer (sentence-transformers), or all semi-hard negatives (pytorch-metric-learning);
    "hard": each anchor with its furthest positive and nearest negative (Hermans et al., batch hard);
    "all": all of them (batch all);
    "random": each anchor with one positive and one negative, drawn by the seed and the anchor's number in the global
        batch; pass the step as the seed, or equal batches draw alike.

    FaceNet squares distances; like both libraries and Hermans et al. this doesn't. Triplets without a loss are left
    out of the mean, as in pytorch-metric-learning; sentence-transformers counts them for hard and semi-hard ones. Its
    margin is 5, pytorch-metric-learning's 0.05; 0.2 is FaceNet's.

    A batch without triplets, or of which none has a loss, gives 0 with a gradient of 0. Rows that are equal have
    no direction to part in. Exact over processes; memory grows with N, not with its square. Returns () float32, or
    float64 for float64 rows. Raises ValueError for shapes that don't match and an unknown mining.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"features must be (b, d) and labels (b,) long, not {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if mining not in MINERS:
        raise ValueError(f"there is no mining {mining!r}; {nearest(mining, MINERS)}")
    return _Triplets.apply(features, labels, margin, mining, seed)  # pyright: ignore[reportReturnType]


def _pull(to_every: Tensor, every: Tensor, anchors: Tensor, distance: Tensor, mined: Mined) -> None:
    """Add to the gradient (n, d) of all rows what the distances of some anchors, (h, n), pull them and others."""
    rows = every[anchors]
    if mined.places is None:
        pull = torch.where(distance > 0, mined.slope / distance, 0)
        to_every[anchors] += pull.sum(1)[:, None] * rows - pull @ every
        to_every += pull.sum(0)[:, None] * every - pull.T @ rows
    else:
        distance = distance.gather(1, mined.places)
        pull = torch.where(distance > 0, mined.slope / distance, 0)[..., None] * (rows[:, None] - every[mined.places])
        to_every[anchors] += pull.sum(1)
        to_every.index_add_(0, mined.places.flatten(), pull.flatten(0, 1), alpha=-1)


class Block(NamedTuple):
    """Some anchors against all rows."""

    distance: Tensor  # (h, n) float64
    positive: Tensor  # (h, n) bool: of the anchor's class, and not itself
    negative: Tensor  # (h, n) bool
    margin: float
    draws: Tensor  # (h, 2) float64 in [0, 1)


class Mined(NamedTuple):
    """What came of it: the sum of the losses, how many there are above 0, and d sum / d distance.

    The latter is that of all distances, (h, n), or of those at `places`, (h, k), where all others have none.
    """

    loss: Tensor  # ()
    count: Tensor  # ()
    slope: Tensor
    places: Tensor | None = None  # (h, k) long


class _Triplets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, labels: Tensor, margin: float, mining: str, seed: int) -> Tensor:
        spread = distributed.rows(len(features))
        every = distributed.all_gather(features.detach(), spread).double()
        sums, to_every = every.new_zeros(2), torch.zeros_like(every)
        for anchors, block in blocks(every, labels, spread, margin, seed):
            mined = MINERS[mining](block)
            # What isn't finite is never mined, but must show.
            sums += torch.stack([mined.loss + 0 * block.distance.sum(), mined.count])
            if ctx.needs_input_grad[0]:
                _pull(to_every, every, anchors, block.distance, mined)
        distributed.all_reduce(sums)
        if ctx.needs_input_grad[0]:
            to_features = distributed.reduce_scatter(to_every, spread) / sums[1].clamp_min(1)
            ctx.save_for_backward(to_features.to(features.dtype))
        return (sums[0] / sums[1].clamp_min(1)).to(torch.promote_types(features.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * gradients[0].to(ctx.saved_tensors[0].dtype), None, None, None, None


def blocks(
    every: Tensor, labels: Tensor, spread: distributed.Rows, margin: float, seed: int
) -> Iterator[tuple[Tensor, Block]]:
    """This process's rows by number, some at a time, against the rows of all processes.

    every: (n, d) float64, all rows; labels: (b,) of those that are here.
    """
    classes = distributed.all_gather(labels, spread)
    n, device = len(every), every.device
    squares = every.square().sum(1)
    draws = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)
    numbers = torch.arange(n, device=device)
    for anchors in numbers[spread.here].split(max(1, BLOCK // n)) if len(labels) else ():
        distance = _distances(every[anchors], every, squares[anchors], squares)
        same = classes[anchors, None] == classes
        yield anchors, Block(distance, same & (anchors[:, None] != numbers), ~same, margin, draws[anchors])


def _distances(x: Tensor, y: Tensor, x_squares: Tensor, y_squares: Tensor) -> Tensor:
    """(h, d) and (n, d) float64 -> (h, n). Of rows that are equal to rounding it is 0."""
    both = x_squares[:, None] + y_squares
    apart = torch.addmm(both, x, y.T, alpha=-2)
    return apart.masked_fill_(apart <= ROUNDING * both, 0).sqrt_()


def semi_hard(block: Block) -> tuple[Tensor, Tensor]:
    """Which of the positives have a semi-hard negative, (h, n) bool, and the place of each one's nearest, (h, n)."""
    near, order = block.distance.masked_fill(~block.negative, torch.inf).sort(stable=True, dim=1)
    place = torch.searchsorted(near, block.distance, right=True).clamp_max(near.shape[1] - 1)
    negative = near.gather(1, place)
    mined = block.positive & (block.distance < negative) & (negative < block.distance + block.margin)
    return mined, order.gather(1, place)


def hard(block: Block) -> tuple[Tensor, Tensor]:
    """The places of each row's furthest positive and nearest negative, (h, 1) each; any where it has none."""
    furthest = block.distance.masked_fill(~block.positive, -torch.inf).argmax(1, keepdim=True)
    return furthest, block.distance.masked_fill(~block.negative, torch.inf).argmin(1, keepdim=True)


def drawn(block: Block) -> tuple[Tensor, Tensor]:
    """The places of one positive and one negative of each row, (h, 1) each; any where it has none."""
    return _drawn(block.positive, block.draws[:, :1]), _drawn(block.negative, block.draws[:, 1:])


def _semi_hard(block: Block) -> Mined:
    mined, negative = semi_hard(block)
    losses = torch.where(mined, block.distance - block.distance.gather(1, negative) + block.margin, 0)
    slope = mined.double()
    return Mined(losses.sum(), mined.sum(), slope.clone().scatter_add_(1, negative, -slope))


def _hard(block: Block) -> Mined:
    return _chosen(block, *hard(block))


def _random(block: Block) -> Mined:
    return _chosen(block, *drawn(block))


def _all(block: Block) -> Mined:
    # With negatives in the order of their distance, a positive has a loss with the first few of them.
    reach = block.distance + block.margin
    near = block.distance.masked_fill(~block.negative, torch.inf).sort(1).values
    count = torch.searchsorted(near, reach).masked_fill_(~block.positive, 0)
    sums = near.masked_fill_(near.isinf(), 0).cumsum(1)
    losses = torch.where(count > 0, count * reach - sums.gather(1, (count - 1).clamp_min(0)), 0)
    # And a negative with the positives that reach beyond it.
    far = reach.masked_fill(~block.positive, -torch.inf).sort(1).values
    beyond = far.shape[1] - torch.searchsorted(far, block.distance, right=True)
    return Mined(losses.sum(), count.sum(), (count - beyond.masked_fill_(~block.negative, 0)).double())


MINERS: dict[str, Callable[[Block], Mined]] = {"semi_hard": _semi_hard, "hard": _hard, "all": _all, "random": _random}


def _drawn(of: Tensor, draws: Tensor) -> Tensor:
    """The place of one of each row's true values, evenly drawn, (h, 1); any place where there is none."""
    number = of.cumsum(1)
    wanted = (draws * number[:, -1:]).long().clamp_max(number[:, -1:] - 1) + 1
    return ((number == wanted) & of).byte().argmax(1, keepdim=True)


def _chosen(block: Block, positive: Tensor, negative: Tensor) -> Mined:
    """One triplet an anchor: places (h, 1) of both."""
    losses = block.distance.gather(1, positive) - block.distance.gather(1, negative) + block.margin
    mined = (losses > 0) & block.positive.any(1, keepdim=True) & block.negative.any(1, keepdim=True)
    slope = torch.cat([mined, -mined.double()], 1)
    return Mined(torch.where(mined, losses, 0).sum(), mined.sum(), slope, torch.cat([positive, negative], 1))
