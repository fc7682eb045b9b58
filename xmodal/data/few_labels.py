"""A part of the labels of a set: to learn from 1 % or 10 % of them, as semi-supervised evaluations do."""

from __future__ import annotations

import numpy as np

from xmodal.data.pictures import Pictures
from xmodal.data.stable_id import stable_id


def few_labels(pictures: Pictures, fraction: float) -> np.ndarray:
    """Rows (m,) in their order: this fraction of each class, rounded, and at least one picture of it.

    Which they are depends on what a picture is called and on nothing else, so that every model and every run learns
    from the same, and 1 % of the labels are among the 10 %. Pictures without a class are none of them.
    """
    if pictures.labels is None:
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(pictures.labels >= 0)
    if fraction >= 1:
        return rows
    labels = pictures.labels[rows]
    number = np.array([stable_id(f"label\0{pictures.key(row)}") for row in rows.tolist()], dtype=np.int64)
    order = np.lexsort((number, labels))  # class by class, each in the order of its numbers
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, sizes)
    wanted = np.maximum(1, np.round(fraction * sizes))
    return np.sort(rows[order[place < np.repeat(wanted, sizes)]])
