"""A similarity matrix in tiles: what every loss here is made of. No tile outlives the next.

A matrix of N × N logits is N times as large as what it is made from, and only sums over it are wanted. So a tile is
multiplied out, summed up and dropped; the backward pass multiplies it out again. Logits and sums are float32 or
better for rows of any type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.pairs import Pairs

HEIGHT, WIDTH = 1024, 1024  # of a tile on a CPU: four megabytes, which stay in the cache between product and sums
SIDE = 512  # where rows are compared among themselves: the smaller, the less of the diagonal's tiles is done twice
GPU_HEIGHT, GPU_WIDTH, GPU_SIDE = 2048, 16384, 4096  # large enough to fill a GPU, at most 128 MiB
HEADROOM = 70.0  # exp(70) summed over 1e7 columns stays below float32's largest number


@dataclass(frozen=True)
class Tile:
    """Some rows against some columns; `mirrored` where the tile stands for its transpose as well."""

    rows: slice
    columns: slice
    mirrored: bool
    places: Tensor  # of the pairs inside, in the flattened tile
    pairs: Tensor  # their numbers among all pairs

    @property
    def count(self) -> int:
        """How many values."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def put(self, values: Tensor, at_pairs: Tensor | float) -> Tensor:
        """Overwrite the tile's values at pairs with one number, or with those of all pairs (p,)."""
        found = at_pairs[self.pairs].to(values.dtype) if isinstance(at_pairs, Tensor) else at_pairs
        values.view(-1)[self.places] = found
        return values


class Tiling:
    """How a matrix is cut up and which pairs lie in each tile: worked out once for both passes.

    areas: (rows, columns) each; symmetric: the first is a square of which the tiles below the diagonal are left out,
    and all tiles but those on it are mirrored. first: the number among rows of the row that pairs call 0.
    """

    def __init__(
        self, areas: list[tuple[range, range]], pairs: Pairs, *, symmetric: bool = False, first: int = 0
    ) -> None:
        if pairs.row.device.type == "cpu":
            height, width = (SIDE, SIDE) if symmetric else (HEIGHT, WIDTH)
        else:
            height, width = (GPU_SIDE, GPU_SIDE) if symmetric else (GPU_HEIGHT, GPU_WIDTH)
        self._tiles = []
        for number, (rows, columns) in enumerate(areas):
            triangle = symmetric and number == 0
            self._tiles += _cut(rows, columns, height, width, pairs.row + first, pairs.column, symmetric, triangle)

    def buffer(self, rows: Tensor) -> Tensor | None:
        """Memory for one tile after the other of logits of such rows; None where the allocator does as well."""
        largest = max((tile.count for tile in self._tiles), default=0)
        return None if rows.is_cuda else rows.new_empty(largest)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles)


def _cut(
    rows: range,
    columns: range,
    height: int,
    width: int,
    row: Tensor,
    column: Tensor,
    symmetric: bool,
    triangle: bool,
) -> list[Tile]:
    row, column = row - rows.start, column - columns.start
    inside = ((row >= 0) & (row < len(rows)) & (column >= 0) & (column < len(columns))).nonzero().squeeze(1)
    row, column = row[inside], column[inside]
    across = -(-len(columns) // width)
    number = row // height * across + column // width
    order = number.argsort(stable=True)
    ends = torch.bincount(number, minlength=-(-len(rows) // height) * across).cumsum(0).tolist()
    # A tile's width differs at the right edge only.
    widths = (len(columns) - column // width * width).clamp(max=width)
    place, inside = (row % height * widths + column % width)[order], inside[order]
    found = []
    for a in range(0, len(rows), height):
        for c in range(a if triangle else 0, len(columns), width):
            n = a // height * across + c // width
            here = slice(ends[n - 1] if n else 0, ends[n])
            down = slice(rows.start + a, rows.start + min(a + height, len(rows)))
            along = slice(columns.start + c, columns.start + min(c + width, len(columns)))
            found.append(Tile(down, along, symmetric and not (triangle and a == c), place[here], inside[here]))
    return found


def logits(x: Tensor, y: Tensor, scale: float, into: Tensor | None = None) -> Tensor:
    """scale · x @ yᵀ, (h, d) and (w, d) -> (h, w) float32 or better; `into`: memory that tiles may share."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(x, y.T, out_dtype=torch.float32).mul_(scale)
    values = x.new_empty(len(x), len(y)) if into is None else into[: len(x) * len(y)].view(len(x), len(y))
    return values.addmm_(x, y.T, beta=0, alpha=scale)


def add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """to += a @ b, added up in the type of `to`."""
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to += torch.mm(a, b, out_dtype=to.dtype)


def accumulator(rows: Tensor) -> Tensor:
    """Zeros of the shape of rows, in float32 or better."""
    return torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))


def common_reference(x: Tensor, y: Tensor, scale: float) -> float:
    """What exponents of all logits are taken relative to: max(0, |scale| · |x| · |y| − 70) with the longest rows.

    Nothing overflows, and one number for all tiles and processes lets sums of rows and of columns be added up. It is a
    whole number, which every type holds exactly.
    """
    most = torch.zeros(1, dtype=torch.float64, device=x.device)
    if len(x) and len(y):  # a process may have no rows
        longest = [torch.linalg.vector_norm(rows, dim=1).max().double() for rows in (x, y)]
        most[0] = abs(scale) * longest[0] * longest[1]
    distributed.all_reduce(most, "max")
    largest = most.item()
    if not math.isfinite(largest):
        return largest  # and so is the loss, on every process
    return float(max(0, math.floor(largest - HEADROOM)))
