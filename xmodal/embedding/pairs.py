"""Pictures and texts of data to train on, in any form that training takes: what a teacher is asked before it is needed.

A picture's number is its row in the data, a text's its place among the distinct texts in the order of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from xmodal.data.distinct import distinct_texts
from xmodal.data.source import Source, captions
from xmodal.embedding.inputs import Kind, Part, in_parts


class PicturesOfPairs:
    """The picture of each row, by what the source calls it."""

    kind: Kind = "image"

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.replaced = source, source.name, Counter[str]()
        self.remote = getattr(source, "remote", False)
        folder = getattr(source, "folder", None)  # of a table, whose names are relative to it
        self.root = None if folder is None else str(folder.absolute())

    def parts(self, size: int) -> Iterator[Part]:
        return in_parts(map(self.source.key, range(len(self.source))), size, lambda name: name)

    def pictures(self, first: int, names: Sequence[str]) -> list[Any]:
        """The pictures of so many rows from the first on; a BadSample for one that can't be read."""
        return self.source.images(np.arange(first, first + len(names)))


class TextsOfPairs:
    """Each distinct text once."""

    kind: Kind = "text"
    root = None

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.replaced = source, source.name, Counter[str]()

    @cached_property
    def _is_first(self) -> np.ndarray:
        """Of all captions, whether one was not there before."""
        found = np.zeros(sum(1 for _ in captions(self.source)), dtype=bool)
        found[distinct_texts(self.source)[1]] = True
        return found

    def parts(self, size: int) -> Iterator[Part]:
        new = (text for text, first in zip(captions(self.source), self._is_first, strict=True) if first)
        return in_parts(new, size, lambda text: text)
