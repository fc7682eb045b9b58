"""In which order the rows of a source come: all at random, a window of shards at a time, several sources side by side.

Each is a pure function of (seed, epoch, position) that takes no memory for rows; a run that goes on, on any number of
processes, asks for the positions of its next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from xmodal.data.order import SHARD, WITHIN, key, shuffle

WINDOW = 16  # shards; with img2dataset's 10,000 samples in each, a batch is drawn from 160,000


class Order(Protocol):
    """Which row stands at which position of an epoch."""

    def __len__(self) -> int:
        """Positions in an epoch."""
        ...

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Positions (b,) in range(len(self)) -> rows (b,)."""
        ...


class Shuffled:
    """Every row of n once, anywhere."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        return shuffle(positions, self.n, seed, epoch)


class Windowed:
    """Every row once, those of `window` shards at a time: shards are shuffled, then the rows of each window's shards.

    sizes: rows in each shard (s,). For shards that are far away, of which only a few should be in use at a time.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, window: int = WINDOW) -> None:
        self.sizes, self.window = np.asarray(sizes, dtype=np.int64), window
        self.first = np.cumsum(self.sizes) - self.sizes  # the first row of each shard

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        s = len(self.sizes)
        shards = shuffle(np.arange(s), s, seed, epoch, SHARD)  # (s,) in this epoch's order
        ends = np.cumsum(self.sizes[shards])  # (s,) the position after each shard
        borders = np.append(ends[self.window - 1 : s - 1 : self.window], ends[-1])  # the position after each window
        windows = np.searchsorted(borders, positions, side="right")  # (b,)
        places = np.empty(len(positions), dtype=np.int64)  # in the shards as they are ordered, (b,)
        for number in np.unique(windows).tolist():
            here = windows == number
            start = borders[number - 1] if number else 0
            size = int(borders[number] - start)
            places[here] = start + shuffle(positions[here] - start, size, key(seed, number), epoch, WITHIN)
        at = np.searchsorted(ends, places, side="right")
        return self.first[shards[at]] + places - (ends[at] - self.sizes[shards[at]])

    def of(self, rows: np.ndarray) -> Windowed:
        """The order of some of the rows (n,), which are sorted; they are numbered from 0."""
        shards = np.searchsorted(self.first + self.sizes, rows, side="right")
        return Windowed(np.bincount(shards, minlength=len(self.sizes)), self.window)


class Mixed:
    """Several sources, of which an epoch has round(weight · n) rows each, spread evenly over it.

    Which source stands at a position doesn't depend on the seed: any stretch of the epoch, so any batch, has each
    source's share to within a few rows. Of a source with weight 2.5 each row comes twice, and half of its rows, other
    ones each epoch, a third time: its own order is passed through anew, with a key of each pass. Rows are numbered
    through: those of the first source, then those of the second …
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], rows: Sequence[int]) -> None:
        """rows: how many each source has; its order has each of them once in an epoch."""
        self.orders = list(orders)
        self.first = np.cumsum(rows) - np.asarray(rows)
        self.counts = [round(weight * len(order)) for weight, order in zip(weights, orders, strict=True)]

    def __len__(self) -> int:
        return sum(self.counts)

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        found = np.empty(len(positions), dtype=np.int64)
        rest = np.arange(len(positions))  # whose source isn't found yet
        # Python's integers: a product of two positions may have more than 64 bits.
        at: Any = positions.astype(object)
        left = len(self)  # positions of this source and those after it
        for number, (order, count) in enumerate(zip(self.orders, self.counts, strict=True)):
            if not len(rest):
                break
            before = at * count // left  # how many of this source's rows stand earlier, (rest,)
            mine = ((at + 1) * count // left > before).astype(bool)
            found[rest[mine]] = self.first[number] + self._of(order, number, before[mine], seed, epoch)
            rest, at, left = rest[~mine], (at - before)[~mine], left - count
        return found

    def near(self, row: int) -> tuple[int, int] | None:
        """As that of the source's own order, if it has it; see `near`."""
        number = int(np.searchsorted(self.first, row, side="right")) - 1
        start = int(self.first[number])
        found = near(self.orders[number], row - start)
        return found and (start + found[0], start + found[1])

    @staticmethod
    def _of(order: Order, number: int, places: Any, seed: int, epoch: int) -> np.ndarray:
        """Places (b,) among all that an epoch has of a source -> its rows (b,)."""
        rows, places = np.empty(len(places), dtype=np.int64), places.astype(np.int64)
        passes, positions = places // len(order), places % len(order)
        for turn in np.unique(passes).tolist():
            here = passes == turn
            rows[here] = order.rows(positions[here], key(seed, number, turn), epoch)
        return rows


def near(order: Order, row: int) -> tuple[int, int] | None:
    """Where rows come in groups that are fetched whole, the first of the row's group and the one after its last."""
    found = getattr(order, "near", None)
    return None if found is None else found(row)


def order_of(source: Any) -> Order:
    """The order that a source asks for as its `order`; without one, all rows at random."""
    return getattr(source, "order", None) or Shuffled(len(source))
