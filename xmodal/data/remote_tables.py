"""Parquet files at addresses, read by ranges: their footers, and their small columns, such as captions and classes.

Both are fetched once, kept in the cache and mapped from there; `row_groups` reads pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from xmodal import distributed
from xmodal.data.fetched import Fetched, fetch
from xmodal.data.remote_files import State, cache_folder, state
from xmodal.data.spool import Spool
from xmodal.errors import Failed, InputError, nearest

S = TypeVar("S")
T = TypeVar("T")

VERSION = 1  # of what is kept
TAIL = 64_000  # bytes at the end of a file, in which most footers lie whole
AT_ONCE = 16  # files that are looked into
TRIES = 2  # at what came whole and can't be decoded


class File(NamedTuple):
    """A parquet file as it was when the data was opened. key: of what is kept of it."""

    address: str
    state: State
    key: str

    @property
    def name(self) -> str:
        return self.address.partition("?")[0].rpartition("/")[2]

    def require_unchanged(self) -> None:
        """Raises Failed for one that is another by now."""
        if (now := state(self.address)) != self.state:
            told = f"{self.state.size:,} bytes and are {now.size:,}" if now.size != self.state.size else "other ones"
            raise Failed(f"{self.address} has changed since it was opened: it had {told}.")

    def fetch(self, places: Iterable[tuple[int, int]]) -> Fetched:
        """With places (offset, size) there. Raises Failed where they can't be had, or are of another file by now."""
        try:
            found = fetch(self.address, self.state.size, places)
        except Failed:
            self.require_unchanged()  # the better reason, if it is one
            raise
        self.require_unchanged()
        return found


class RemoteTables:
    """The rows of all files, one file after the other.

    features: of the columns, if more is known of them than what the first file says.
    Raises InputError for a file that can't be read or is no parquet.
    """

    def __init__(self, addresses: Sequence[str], features: Any = None) -> None:
        states = in_turn(addresses, state, "looking up")
        self.files = [File(one, told, hashed(VERSION, one, *told)) for one, told in zip(addresses, states, strict=True)]
        self._kept = Spool(cache_folder("tables"))
        self._footers: dict[int, Any] = {}  # by the file's number
        self.rows = [footer.num_rows for footer in in_turn(range(len(self.files)), self.footer, "footers")]
        self.features = features or self._features()

    def __getstate__(self) -> dict[str, Any]:
        """Footers are read anew from the cache, of the files that a process needs."""
        return {**self.__dict__, "_footers": {}}

    def head(self) -> Any:
        """A `datasets.Dataset` with all columns and no rows."""
        import datasets

        return datasets.Dataset(self.features.arrow_schema.empty_table())

    def columns(self, names: Sequence[str]) -> Any:
        """A `datasets.Dataset` of small columns, fetched once and mapped. Raises InputError where a file lacks one."""
        import datasets

        schema = datasets.Features({name: self.features[name] for name in names}).arrow_schema

        def kept(number: int) -> Any:
            file = self.files[number]
            key = hashed(file.key, str(schema), schema.metadata[b"huggingface"].decode())
            self._kept.table(key, schema, self.rows[number], lambda: self._read(number, schema))
            return datasets.Dataset.from_file(str(self._kept.path(key)))

        found = in_turn([number for number, rows in enumerate(self.rows) if rows], kept, "captions and classes")
        return datasets.concatenate_datasets(found) if found else datasets.Dataset(schema.empty_table())

    def footer(self, number: int) -> Any:
        """What a file says of itself, a `pyarrow.parquet.FileMetaData`. Raises InputError if it is no parquet."""
        if number not in self._footers:
            self._footers[number] = _parsed(self.files[number].address, self._footer(self.files[number]))
        return self._footers[number]

    def leaves(self, number: int, column: str) -> dict[str, int]:
        """What a column of a file is made of, such as image.bytes and image.path, and its number in a row group."""
        schema = self.footer(number).schema
        paths = {schema.column(i).path: i for i in range(len(schema.names))}
        found = {path: i for path, i in paths.items() if path == column or path.startswith(f"{column}.")}
        if not found:
            there = list(dict.fromkeys(path.partition(".")[0] for path in paths))
            raise InputError(f"{self.files[number].address} has no column {column!r}; {nearest(column, there)}")
        return found

    def place(self, number: int, group: int, leaf: int) -> tuple[int, int]:
        """Where a file has a column of a row group: offset and size. Raises InputError for one beyond its end."""
        told, size = self.footer(number).row_group(group).column(leaf), self.files[number].state.size
        start = told.data_page_offset
        if told.has_dictionary_page and told.dictionary_page_offset:
            start = min(start, told.dictionary_page_offset)
        if not 0 <= start <= start + told.total_compressed_size <= size:
            raise InputError(f"{self.files[number].address} is damaged: its row group {group} lies beyond its end.")
        return start, told.total_compressed_size

    def digest(self) -> str:
        """Of the names of files, their sizes and footers, which say how large each column of each row group is."""
        found = hashlib.sha256()
        for file in self.files:
            found.update(f"{file.name} {file.state.size}\n".encode() + self._footer(file))
        return found.hexdigest()

    def _footer(self, file: File) -> bytes:
        """As it lies at the end of the file."""
        import pyarrow as pa

        schema = pa.schema({"footer": pa.binary()})

        def fetched() -> Iterator[Any]:
            size, address = file.state.size, file.address
            end = file.fetch([(max(0, size - TAIL), min(size, TAIL))])
            end.seek(max(0, size - 8))
            last = end.read()
            length = int.from_bytes(last[:4], "little") + 8
            if last[4:] != b"PAR1" or length > size:
                raise InputError(f"{address} is no parquet file, or its end is missing.")
            if length > TAIL:
                end = file.fetch([(size - length, length)])
            end.seek(size - length)
            _parsed(address, footer := end.read())
            yield pa.record_batch([pa.array([footer])], schema=schema)

        return self._kept.table(file.key, schema, 1, fetched).column(0)[0].as_py()

    def _features(self) -> Any:
        """Of the columns of the first file, as `datasets` wrote them there, or by their types."""
        import datasets

        try:
            return datasets.Features.from_arrow_schema(self.footer(0).schema.to_arrow_schema())
        except Exception as error:  # what is written there can be anything
            told = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"{self.files[0].address}: its columns can't be told: {told}") from None

    def _read(self, number: int, schema: Any) -> Iterator[Any]:
        """Small columns of a file, as record batches of a schema."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, footer = self.files[number], self.footer(number)
        leaves = [leaf for name in schema.names for leaf in self.leaves(number, name).values()]
        groups = range(footer.num_row_groups)
        data = file.fetch(self.place(number, group, leaf) for group in groups for leaf in leaves)
        try:
            table = pq.ParquetFile(data, metadata=footer, pre_buffer=False, page_checksum_verification=True)
            for batch in table.iter_batches(columns=schema.names, use_threads=False):
                yield batch.select(schema.names).cast(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            told, what = str(error).partition("\n")[0], ", ".join(schema.names)
            raise InputError(f"{file.address}: {what} can't be read as in the first file: {told}") from None


def _parsed(address: str, footer: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(io.BytesIO(footer))
    except (pa.ArrowException, OSError) as error:
        told = str(error).partition("\n")[0]
        raise InputError(f"{address} is no parquet file: {told}") from None


def in_turn(things: Sequence[S], action: Callable[[S], T], what: str) -> list[T]:
    """What the action returns of each, some at a time; a bar is shown when it takes long.

    Each process begins at another place, so that those that share a cache share the work.
    """
    from tqdm import tqdm

    start = distributed.part(len(things)).start
    turns = [*range(start, len(things)), *range(start)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {number: pool.submit(action, things[number]) for number in turns}
        try:
            shown = tqdm(waiting.items(), what, unit=" files", delay=2, disable=None)
            found = {number: one.result() for number, one in shown}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[number] for number in range(len(things))]


def hashed(*told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]
