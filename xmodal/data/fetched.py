"""A file far away as pyarrow reads one: parts that were fetched together, and what else is asked for, one by one."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from xmodal.data.remote_files import Range, read_ranges

PIECE = 16_000_000  # bytes of a long range, fetched beside its other pieces
GAP = 64_000  # bytes between two ranges that are fetched rather than asked for twice


class Fetched(io.RawIOBase):
    """size: of the whole file. parts: bytes by their offsets, none over another."""

    def __init__(self, address: str, size: int, parts: dict[int, bytes] | None = None) -> None:
        self.address, self.size = address, size
        self._parts = sorted((parts or {}).items())
        self._starts = [start for start, _ in self._parts]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Raises Failed where it can't be had."""
        end = self.size if size is None or size < 0 else min(self.size, self._at + size)
        found = []
        while self._at < end:
            found.append(self._next(end))
            self._at += len(found[-1])
        return found[0] if len(found) == 1 else b"".join(found)

    def _next(self, end: int) -> bytes:
        """From here on to the end, or as far as it lies in one part or in none."""
        number = bisect_right(self._starts, self._at)
        if number:
            start, part = self._parts[number - 1]
            if self._at < start + len(part):
                return part[self._at - start : end - start]
        until = min(end, *self._starts[number : number + 1], end)
        return read_ranges([Range(self.address, self._at, until - self._at)])[0]


def fetch(address: str, size: int, places: Iterable[tuple[int, int]]) -> Fetched:
    """With places (offset, size) of the file there, fetched at once. Raises Failed where they can't be had."""
    pieces = [
        Range(address, start, min(PIECE, stop - start))
        for first, stop in _together(sorted(places))
        for start in range(first, stop, PIECE)
    ]
    return Fetched(address, size, {one.offset: data for one, data in zip(pieces, read_ranges(pieces), strict=True)})


def _together(places: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Offsets and sizes -> the first byte and the one after the last of what lies nearly side by side."""
    spans: list[list[int]] = []
    for start, size in places:
        if spans and start <= spans[-1][1] + GAP:
            spans[-1][1] = max(spans[-1][1], start + size)
        else:
            spans.append([start, start + size])
    return [(start, stop) for start, stop in spans if stop > start]
