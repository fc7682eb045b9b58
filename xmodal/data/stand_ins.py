"""The pictures of a batch, and what stands in for a row that can't be read: a function of the seed and its position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xmodal.data.decode import Decoder
from xmodal.data.order import SUBSTITUTE, draws
from xmodal.data.orders import near, order_of
from xmodal.errors import BadSample, InputError

MOST_TRIES = 100  # rows in a row that can't be read before the data is given up


@dataclass(frozen=True)
class Skipped:
    """A row that could not be read, and why."""

    row: int
    key: str
    reason: str
    detail: str


class Readable(Protocol):
    """As much of a data source as it takes to read its pictures."""

    def __len__(self) -> int: ...
    def images(self, rows: np.ndarray, /) -> list[Any]: ...
    def key(self, row: int, /) -> str: ...


def read_pictures(
    source: Readable,
    rows: np.ndarray,
    positions: np.ndarray,
    epoch: int,
    seed: int,
    decoders: Sequence[Decoder] | None = None,
) -> tuple[list[Any], np.ndarray, list[Skipped]]:
    """The pictures of rows (b,) at positions (b,) of an epoch; which rows they are of in the end; what was skipped.

    A bad row's stand-ins are a walk of its position's own through all rows; where rows are fetched in groups first
    through its group's. Raises InputError when that finds none.
    decoders: for each position what reads its file, if the source takes them; see `Source.images`.
    """
    images: Any = source.images

    def read(places: slice) -> list[Any]:
        return images(rows[places]) if decoders is None else images(rows[places], decoders[places])

    rows, skipped = rows.copy(), []
    pictures = read(slice(None))
    for i, picture in enumerate(pictures):
        attempt = 0
        while isinstance(picture, BadSample):
            row = int(rows[i])
            skipped.append(Skipped(row, source.key(row), picture.reason, str(picture)))
            if attempt == MOST_TRIES:
                raise InputError(f"No readable image in {attempt} tries; the last was {source.key(row)}: {picture}.")
            u = draws(seed, epoch, positions[i : i + 1], MOST_TRIES, SUBSTITUTE)[0, attempt]
            group = near(order_of(source), row) if attempt < MOST_TRIES // 2 else None
            first, end = group or (0, len(source))
            rows[i] = first + int(u * (end - first))
            picture = read(slice(i, i + 1))[0]
            attempt += 1
        pictures[i] = picture
    return pictures, rows, skipped
