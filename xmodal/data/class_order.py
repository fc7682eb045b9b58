"""Classes × pictures: every batch holds some classes with the same number of pictures each.

Where labels say what belongs together, as in SupCon, triplets and N-pairs, a batch that is drawn at random from many
classes holds hardly a positive. Here an epoch deals each class's pictures into groups of k, and the groups into batches
so that no class comes twice in one. All of it is a function of (seed, epoch, position).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from xmodal.data.order import _ROUNDS, _mix, key, shuffle
from xmodal.errors import InputError

CLASS, GROUP, PICTURE, BATCH = range(100, 104)  # streams of random numbers beside those of `order`


class ClassOrder:
    """An order of `batch` / k classes with k pictures each. Beside the rows by class it takes memory for classes alone.

    The groups lie in a line, class by class in an order of the epoch; the line is cut into as many stripes as a batch
    has classes, and a batch takes one group of each stripe. Of a class that lies within a stripe no batch takes two
    groups, so these may be shuffled in their stripe; one that lies across a border has its groups at the end of one
    stripe and at the start of the next, and they stay there, in other batches if it has no more groups than there are
    batches. Of a larger class some pictures, others each epoch, wait for another epoch.

    Pictures of a class that don't fill a group wait as well. A class with fewer than k pictures is one group, in which
    some come twice. A class with one picture has no positive: it is left out, if k is more than 1; see `left_out`.
    """

    def __init__(self, labels: np.ndarray, batch: int, k: int) -> None:
        """labels: (n,) int; what is negative has no class, and is left out. batch: the global one.

        Raises InputError where there are too few classes for a batch.
        """
        if batch % k:
            raise InputError(f"A batch of {batch} can't hold {k} pictures of each class: {k} doesn't divide it.")
        self.k, self.classes = k, batch // k  # classes in a batch
        rows = np.argsort(labels, kind="stable")
        rows = rows[labels[rows] >= 0]
        _, first, sizes = np.unique(labels[rows], return_index=True, return_counts=True)
        alone = sizes < min(2, k)
        self.left_out = Counter({"no class": len(labels) - len(rows), "no other picture of their class": alone.sum()})
        self.by_class = rows  # the rows of a class lie side by side
        self.first, self.sizes = first[~alone], sizes[~alone]  # (c,) each
        if len(self.sizes) < self.classes:
            raise InputError(
                f"A batch of {batch} with {k} pictures of each class needs {self.classes} classes, and there are "
                f"{len(self.sizes)} with more than one picture. Choose a smaller batch or more pictures of a class."
            )
        groups = np.maximum(1, self.sizes // k)
        self.batches = _most_batches(groups, self.classes)
        self.groups = np.minimum(groups, self.batches)

    def __len__(self) -> int:
        """Positions in an epoch: whole batches."""
        return self.batches * self.classes * self.k

    def rows(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Positions (b,) -> rows (b,): position i of a batch is picture i % k of its class number i // k."""
        groups, places = np.divmod(positions, self.k)
        batches, stripes = np.divmod(groups, self.classes)
        classes, nth = self._dealt(stripes, shuffle(batches, self.batches, seed, epoch, BATCH), seed, epoch)
        sizes = self.sizes[classes]
        # A class with fewer pictures than k begins again.
        pictures = shuffle_each((nth * self.k + places) % sizes, sizes, classes, seed, epoch, PICTURE)
        return self.by_class[self.first[classes] + pictures]

    def _dealt(self, stripes: np.ndarray, places: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Stripes and places in them, (b,) each -> whose groups lie there this epoch, and which of that class's."""
        c = len(self.groups)
        line = shuffle(np.arange(c), c, seed, epoch, CLASS)  # (c,) classes in the order of the line
        ends = np.cumsum(self.groups[line])
        starts = ends - self.groups[line]
        border = stripes * self.batches
        # The classes from the first to before the last lie within the stripe.
        first, last = np.searchsorted(starts, border), np.searchsorted(ends, border + self.batches, side="right")
        low, high = starts[np.minimum(first, c - 1)], ends[last - 1]
        at = border + places
        within = (first < last) & (low <= at) & (at < high)
        low, high = low[within], high[within]
        at[within] = low + shuffle_each(at[within] - low, high - low, stripes[within], seed, epoch, GROUP)
        found = np.searchsorted(ends, at, side="right")
        return line[found], at - starts[found]


def shuffle_each(
    positions: np.ndarray, n: np.ndarray, whose: np.ndarray, seed: int, epoch: int, stream: int
) -> np.ndarray:
    """`order.shuffle` in many ranges at once: position i in range(n[i]) -> another, by the bijection of whose[i]."""
    bits = np.frexp(np.maximum(n - 1, 1))[1]  # of n − 1
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)  # (b,)
    mask = (np.uint64(1) << half) - np.uint64(1)
    own = _mix(whose.astype(np.uint64))
    keys = [_mix(np.uint64(key(stream, seed, epoch, r)) ^ own) for r in range(_ROUNDS)]  # (b,) each
    rows = positions.astype(np.uint64)
    outside = np.arange(len(rows))
    while len(outside):
        h, m = half[outside], mask[outside]
        left, right = rows[outside] >> h, rows[outside] & m
        for k in keys:
            left, right = right, left ^ (_mix(right ^ k[outside]) & m)
        rows[outside] = (left << h) | right
        outside = outside[rows[outside] >= n[outside].astype(np.uint64)]
    return rows.astype(np.int64)


def _most_batches(groups: np.ndarray, classes: int) -> int:
    """The most batches of so many classes that groups (c,) fill if no batch takes two of one class."""
    low, high = 1, int(groups.sum()) // classes  # one batch there is always
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * classes:
            low = middle
        else:
            high = middle - 1
    return low
