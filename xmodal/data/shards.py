"""Tar shards as webdataset and img2dataset write them, read by offset as they lie, here or far away.

Any row is one read away. Local shards come in the global order, as files do; those at an address a window of shards at
a time. Their indexes are found by one pass over each, kept in the cache, and mapped from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xmodal import distributed
from xmodal.data import remote_files
from xmodal.data.decode import MOST_BYTES, Decoder, decode_each, mostly_photographs
from xmodal.data.orders import Order, Shuffled, Windowed
from xmodal.data.reading import each
from xmodal.data.remote_files import Range
from xmodal.data.shard_index import BESIDE, VERSION, Index, joined, read_index, scan
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

MOST_OPEN = 64  # shards, in each process
AT_ONCE = 8  # shards whose headers are gone through
MOST_INDEX_BYTES = 1_000_000_000


class Shards:
    """A source over shards, by their paths or by their addresses."""

    def __init__(self, name: str, shards: Sequence[str], columns: Columns) -> None:
        self.name, self.shards, self.remote = name, list(shards), remote_files.is_remote(shards[0])
        self._open: dict[int, FileIO] = {}  # by shard
        self._mapped: Path | None = None
        if self.remote:
            self._mapped = _indexed_remote(self.shards, columns.caption)
            index = _kept(self._mapped)
        else:
            found = _with_bar([lambda path=path: _indexed_local(path, columns.caption) for path in self.shards], 1)
            index = joined(found)
        self._batches, self._digest = index.batches, index.digest
        self.dropped: Mapping[str, int] = index.dropped
        sizes = np.array([len(batch) for batch in self._batches], dtype=np.int64)
        self._ends = np.cumsum(sizes)  # (s,) the row after each shard's last
        self.order: Order = Windowed(sizes) if self.remote else Shuffled(len(self))
        self._names = _short(self.shards)
        self.image_id = np.concatenate([_ids(*both) for both in zip(self._batches, self._names, strict=True)])
        self.photographs = mostly_photographs(self.file(row) for row in range(min(64, len(self))))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        files = self._files(rows.tolist()) if self.remote else map(self.file, rows.tolist())  # from far all at once
        return decode_each(each(rows, files), decoders)

    def texts(self, row: int) -> Sequence[str]:
        shard, place = self._place(row)
        return self._batches[shard].column("texts")[place].as_py()

    def key(self, row: int) -> str:
        """The shard and the sample's key in it."""
        shard, place = self._place(row)
        return f"{self._names[shard]}:{self._batches[shard].column('key')[place].as_py()}"

    def file(self, row: int) -> bytes:
        """The picture as it is stored."""
        return self._files([row])[0]

    def fingerprint(self) -> str:
        """Over keys, captions, and the sizes of pictures."""
        return self._digest

    def __getstate__(self) -> dict[str, Any]:
        """Each process opens its own files, and maps what is mapped."""
        return {**self.__dict__, "_open": {}, "_batches": None if self._mapped else self._batches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped:
            self._batches = _kept(self._mapped).batches

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and its number there."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, int(row) - int(self._ends[shard] - len(self._batches[shard]))

    def _files(self, rows: Iterable[int]) -> list[bytes]:
        """Pictures as they are stored, or of one too large a byte more than decoding takes, so that it says so."""
        places = [self._place(row) for row in rows]
        ranges = []
        for shard, place in places:
            offset, size = (self._batches[shard].column(name)[place].as_py() for name in ("offset", "size"))
            ranges.append(Range(self.shards[shard], offset, min(size, MOST_BYTES + 1)))
        if self.remote:
            return remote_files.read_ranges(ranges)
        return [self._read(shard, one) for (shard, _), one in zip(places, ranges, strict=True)]

    def _read(self, shard: int, place: Range) -> bytes:
        if shard not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = FileIO(place.address)
        return os.pread(self._open[shard].fileno(), place.size, place.offset)


def _indexed_local(path: str, caption: str | None) -> Index:
    """From the index beside it where that is of this shard, else from its headers."""
    try:
        size, beside = os.path.getsize(path), path + BESIDE
        if caption is None and os.path.isfile(beside):
            found = read_index(Path(beside).read_bytes(), size)
            if found is not None:
                return found
        with open(path, "rb") as file:
            return scan(file, path, size, caption)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None


def _indexed_remote(shards: Sequence[str], caption: str | None) -> Path:
    """The file in the cache with the index of all these shards as they are now.

    Every process asks for all, each beginning at another place, so that those that share a cache share the work.
    """
    folder = remote_files.cache_folder()
    states = _with_bar([lambda one=one: remote_files.state(one) for one in shards], AT_ONCE)
    keys = [_hashed(VERSION, shard, *known, caption) for shard, known in zip(shards, states, strict=True)]
    together = folder / f"{_hashed(*keys)}{BESIDE}"
    if together.is_file() and read_index(together) is not None:
        return together

    files = [folder / f"{key}{BESIDE}" for key in keys]

    def index(number: int) -> Index:
        """Without its rows, which are kept."""
        shard, size = shards[number], states[number].size
        found = read_index(files[number].read_bytes(), size) if files[number].is_file() else None
        if found is None:
            beside = remote_files.read_whole(shard + BESIDE, MOST_INDEX_BYTES) if caption is None else None
            found = read_index(beside, size) if beside is not None else None
            found = found or remote_files.through(shard, lambda file: scan(file, shard, size, caption))
            _keep(found, files[number])
        return replace(found, batches=())

    def rows() -> Iterator[Any]:
        for path in files:
            yield from _kept(path).batches

    start = distributed.part(len(shards)).start
    turns = [*range(start, len(shards)), *range(start)]
    found = dict(zip(turns, _with_bar([lambda n=n: index(n) for n in turns], AT_ONCE), strict=True))
    _keep(joined([found[number] for number in range(len(shards))]), together, rows())
    return together


def _kept(path: Path) -> Index:
    """An index in the cache that was there a moment ago."""
    found = read_index(path)
    if found is None:
        raise InputError(f"{path} can't be read any more: something else changes the cache.")
    return found


def _keep(index: Index, path: Path, batches: Iterable[Any] | None = None) -> None:
    """Whole or not at all, whoever else writes the same."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index.write(beside, batches)
        beside.replace(path)
    except OSError as error:
        told = f"Cannot write the index {path}: {error.strerror}. XDG_CACHE_HOME names another place."
        raise InputError(told) from None


def _with_bar(actions: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
    """What the actions return, some at a time; a bar is shown when it takes long."""
    from tqdm import tqdm

    with ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(action) for action in actions]
        try:
            return [one.result() for one in tqdm(waiting, "indexing", unit=" shards", delay=2, disable=None)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _hashed(*told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]


def _ids(batch: Any, name: str) -> np.ndarray:
    """(rows,) int64: equal where a record's image_id is, else another one for each key and shard."""
    own, named = batch.column("id").to_numpy(), batch.column("named").to_numpy(zero_copy_only=False)
    return np.where(named, own, own ^ np.int64(stable_id(name)))


def _short(names: Sequence[str]) -> list[str]:
    """The names of shards without the folders that all share, if their last parts don't tell them apart already."""
    last = [name.rpartition("/")[2] for name in names]
    if len(set(last)) == len(last):
        return last
    parts = [name.split("/") for name in names]
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), 0)
    return ["/".join(part[shared:]) for part in parts]
