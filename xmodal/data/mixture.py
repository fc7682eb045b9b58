"""Several sources as one: what is behind the :: of a spec, each maybe with a weight."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder
from xmodal.data.orders import Mixed, Order, order_of
from xmodal.data.source import Source
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample


class Mixture:
    """A source over the rows of others, one after the other.

    parts: by the spec of each, which tells pictures of one name in two places apart.
    weights: of how many times its rows an epoch has of each; 1 for all if not given.
    """

    def __init__(self, name: str, parts: Sequence[tuple[str, Source]], weights: Sequence[float] = ()) -> None:
        self.name, self.parts = name, [part for _, part in parts]
        sizes = [len(part) for part in self.parts]
        self._ends = np.cumsum(sizes)  # the row after each part's last
        self.order: Order = Mixed([order_of(part) for part in self.parts], weights or [1.0] * len(parts), sizes)
        self.image_id = np.concatenate([part.image_id ^ np.int64(stable_id(spec)) for spec, part in parts])
        self.dropped: Mapping[str, int] = sum((Counter(part.dropped) for part in self.parts), Counter[str]())
        self.remote = any(getattr(part, "remote", False) for part in self.parts)
        self.photographs = 2 * sum(len(part) for part in self.parts if part.photographs) > len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        """Each part is asked once for all of its rows."""
        found: list[Image.Image | np.ndarray | BadSample] = [np.empty(0)] * len(rows)
        of = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(of).tolist():
            here = np.flatnonzero(of == number)
            inside = rows[here] - self._start(number)
            pictures = self.parts[number].images(inside, decoders and [decoders[i] for i in here.tolist()])
            for i, picture in zip(here.tolist(), pictures, strict=True):
                found[i] = picture
        return found

    def texts(self, row: int) -> Sequence[str]:
        part, place = self._place(row)
        return part.texts(place)

    def key(self, row: int) -> str:
        part, place = self._place(row)
        return f"{part.name}: {part.key(place)}"

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()

    def _place(self, row: int) -> tuple[Source, int]:
        """The part that a row is of, and its number there."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[number], int(row) - self._start(number)

    def _start(self, number: int) -> int:
        return int(self._ends[number]) - len(self.parts[number])
