"""The order of rows that are fetched a group at a time: each group is in use for one stretch of the epoch.

Groups are shuffled. Each is dealt into `window` pieces at random, and its pieces come in as many slots one after the
other, so that each slot mixes pieces of `window` groups, and with each slot one group comes and one goes: what is
fetched is spread evenly over the epoch, and nothing is fetched twice in it. The first and the last slots have fewer
groups, so a run begins when a few are there.

    slot      0    1    2    3    4    5
    group a   a0   a1   a2
    group b        b0   b1   b2
    group c             c0   c1   c2
    group d                  d0   d1   d2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xmodal.data.order import SHARD, shuffle, shuffle_each


class Plan(NamedTuple):
    """An epoch: its groups as they come (g,), and the position after each slot (g + window − 1,)."""

    groups: np.ndarray
    ends: np.ndarray


class Sliding:
    """Every row once; of groups no more than the window holds, all rows come at random.

    sizes: rows in each group (g,); those of a group stand together, and groups one after the other.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, window: int) -> None:
        self.sizes, self.window = np.asarray(sizes, dtype=np.int64), window
        self.first = np.cumsum(self.sizes) - self.sizes  # the first row of each group
        self.filled = np.flatnonzero(self.sizes)  # groups with rows
        self._planned: tuple[tuple[int, int], Plan] | None = None

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        if len(self.filled) <= self.window:
            return shuffle(positions, len(self), seed, epoch)
        plan = self._plan(seed, epoch)
        slots = np.searchsorted(plan.ends, positions, side="right")  # (b,)
        sizes = np.diff(plan.ends, prepend=0)
        inside = shuffle_each(positions - (plan.ends - sizes)[slots], sizes[slots], slots, seed, epoch)
        group, place = np.empty_like(positions), np.empty_like(positions)  # (b,), the place in its group as it is dealt
        for slot in np.unique(slots).tolist():
            here = slots == slot
            turns = np.arange(max(0, slot - self.window + 1), min(slot, len(plan.groups) - 1) + 1)  # those in the slot
            starts, stops = (self._dealt(plan.groups[turns], slot - turns + more) for more in (0, 1))
            ends = np.cumsum(stops - starts)  # of each one's piece in the slot
            of = np.searchsorted(ends, inside[here], side="right")
            group[here] = plan.groups[turns[of]]
            place[here] = stops[of] - (ends[of] - inside[here])
        dealt = shuffle_each(place, self.sizes[group], ~group, seed, epoch)  # ~: other numbers than those of slots
        return self.first[group] + dealt

    def coming(self, positions: np.ndarray, seed: int, epoch: int, count: int) -> list[int]:
        """The groups that come next, after those that stand at these positions of an epoch."""
        if len(self.filled) <= self.window or not len(positions):
            return []
        plan = self._plan(seed, epoch)
        slot = int(np.searchsorted(plan.ends, positions.max(), side="right"))
        return plan.groups[slot + 1 : slot + 1 + count].tolist()

    def near(self, row: int) -> tuple[int, int]:
        """The first of the rows that are fetched with one, and the one after the last."""
        group = int(np.searchsorted(self.first + self.sizes, row, side="right"))
        return int(self.first[group]), int(self.first[group] + self.sizes[group])

    def of(self, rows: np.ndarray) -> Sliding:
        """The order of some of the rows (n,), which are sorted; they are numbered from 0."""
        group = np.searchsorted(self.first + self.sizes, rows, side="right")
        return Sliding(np.bincount(group, minlength=len(self.sizes)), self.window)

    def _dealt(self, groups: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """How many rows of groups (m,) are in their first pieces (m,)."""
        return self.sizes[groups] * pieces // self.window

    def _plan(self, seed: int, epoch: int) -> Plan:
        if self._planned is None or self._planned[0] != (seed, epoch):
            g = len(self.filled)
            groups = self.filled[shuffle(np.arange(g), g, seed, epoch, SHARD)]
            slots = np.zeros(g + self.window - 1, dtype=np.int64)
            for piece in range(self.window):
                slots[piece : piece + g] += self._dealt(groups, np.array(piece + 1)) - self._dealt(
                    groups, np.array(piece)
                )
            self._planned = (seed, epoch), Plan(groups, np.cumsum(slots))
        return self._planned[1]


class Foretold:
    """A sliding order that, when it is asked for rows, says which groups come next, so that they can be fetched."""

    def __init__(self, order: Sliding, count: int, tell: Callable[[list[int]], None]) -> None:
        self.order, self.count, self.tell = order, count, tell

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        self.tell(self.order.coming(positions, seed, epoch, self.count))
        return self.order.rows(positions, seed, epoch)

    @property
    def slides(self) -> bool:
        """Whether groups come and go, so that rows from all over would be fetched again and again."""
        return len(self.order.filled) > self.order.window

    def near(self, row: int) -> tuple[int, int]:
        """As that of the order."""
        return self.order.near(row)

    def of(self, rows: np.ndarray) -> Foretold:
        """As that of the order."""
        return Foretold(self.order.of(rows), self.count, self.tell)
