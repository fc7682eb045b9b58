"""Pictures in parquet files at addresses, a row group at a time.

Those of a row group are fetched when one of them is asked for, or shortly before, by one process of the host for all,
and lie in a spool of limited size while they are in use.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np

from xmodal.data.fetched import Fetched
from xmodal.data.remote_files import cache_folder
from xmodal.data.remote_tables import TRIES, RemoteTables, hashed
from xmodal.data.sliding_order import Foretold, Sliding
from xmodal.data.spool import Spool
from xmodal.errors import Failed, InputError

AT_ONCE = 8  # row groups that a process fetches, if that is no more than
HELD = 500_000_000  # bytes, which it holds until they are written
AHEAD = 4  # row groups that are fetched before they are needed
WINDOW = 2_000_000_000  # bytes of pictures that are shuffled together: 40,000 of 50 kB
FEWEST = 4  # row groups of a window
SPOOL = 16_000_000_000  # bytes, unless two windows are more
SPOOL_GB = "XMODAL_SPOOL_GB"  # the variable that says otherwise
BUFFER = 1_000_000  # bytes that are read at a time
TOGETHER = 256  # rows of a batch as they lie in the spool


class Group(NamedTuple):
    """A row group: number `number` of a file. place: of its pictures there, offset and size; size: of them as read."""

    file: int
    number: int
    rows: int
    place: tuple[int, int]
    size: int
    leaf: str


class RowGroups:
    """The pictures in a column of tables, by their rows. Raises InputError where a file has no such column."""

    def __init__(self, tables: RemoteTables, column: str) -> None:
        self.tables = tables
        self.groups = [group for number in range(len(tables.files)) for group in _groups(tables, number, column)]
        self._rows = np.array([group.rows for group in self.groups], dtype=np.int64)
        self._ends = np.cumsum(self._rows)  # (g,) the row after each group's last
        self._starts = np.cumsum(tables.rows) - tables.rows  # the first row of each file
        sizes = sorted((group.size for group in self.groups), reverse=True)
        self.window = max(FEWEST, -(-WINDOW * len(sizes) // max(1, sum(sizes))))
        self.spool = Spool(cache_folder("spool"), _most(2 * sum(sizes[: self.window + AHEAD])))
        self._begin()

    def _begin(self) -> None:
        """What each process has of its own."""
        self._mapped: OrderedDict[int, Any] = OrderedDict()  # pictures, by the group's number
        self._pool: ThreadPoolExecutor | None = None  # which keeps its threads, as these keep their connections
        self._expected: list[int] = []
        self._lock, self._ahead = Lock(), False

    def __getstate__(self) -> dict[str, Any]:
        own = ("_mapped", "_pool", "_expected", "_lock", "_ahead")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def order(self, rows: np.ndarray) -> Foretold:
        """The order of some rows (n,), sorted; they are numbered from 0."""
        return Foretold(Sliding(self._rows, self.window), AHEAD, self.expect).of(rows)

    def pictures(self, rows: np.ndarray) -> list[bytes]:
        """The files of pictures; b"" where there is none. Raises Failed or InputError where they can't be had."""
        of = np.searchsorted(self._ends, rows, side="right")
        inside = rows - (self._ends - self._rows)[of]
        tables = self._tables(np.unique(of).tolist())
        return [tables[g][i].as_py() or b"" for g, i in zip(of.tolist(), inside.tolist(), strict=True)]

    def first(self, count: int) -> list[bytes]:
        """The first pictures; no more is fetched than these need, of one row group."""
        group = next(group for group in self.groups if group.rows)
        file = self.tables.files[group.file]
        batch = next(self._decoded(group, Fetched(file.address, file.state.size), count))
        return [cell or b"" for cell in batch.column(0).to_pylist()]

    def some(self, count: int, rows: np.ndarray) -> np.ndarray:
        """Which of rows (n,), sorted, to look at where it can't be all: about so many, in few row groups."""
        of = np.searchsorted(self._ends, rows, side="right")
        there = np.unique(of)
        chosen = there[np.unique(np.linspace(0, len(there) - 1, FEWEST).round().astype(int))]
        inside = np.flatnonzero(np.isin(of, chosen))
        return inside[np.unique(np.linspace(0, len(inside) - 1, min(count, len(inside))).round().astype(int))]

    def key(self, row: int) -> str:
        """The file of a row, and its number there."""
        file = self.groups[int(np.searchsorted(self._ends, row, side="right"))].file
        return f"{self.tables.files[file].name}, row {row - int(self._starts[file])}"

    def expect(self, groups: Sequence[int]) -> None:
        """These will be asked for: they are fetched meanwhile, unless another process does that."""
        with self._lock:
            self._expected = [group for group in groups if group not in self._mapped]
            if self._expected and not self._ahead:
                self._ahead = True
                Thread(target=self._fetch_ahead, name="fetch ahead", daemon=True).start()

    def _fetch_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._expected:
                    self._ahead = False
                    return
                group = self._expected.pop(0)
            try:
                if not self.spool.path(self._key(group)).exists():
                    self._table(group, wait=False)
            except (Failed, InputError):  # whoever asks for it tries anew, and says so
                continue

    def _tables(self, groups: Sequence[int]) -> dict[int, Any]:
        """The pictures of groups, mapped; what isn't there is fetched at once."""
        missing = [group for group in groups if group not in self._mapped]
        if missing:
            for group in [group for group in self._mapped if not self.spool.path(self._key(group)).exists()]:
                del self._mapped[group]  # it is no more in use, and would still take room
            if self._pool is None:
                most = HELD // max(1, *(group.size for group in self.groups))
                self._pool = ThreadPoolExecutor(min(AT_ONCE, max(1, most)), "fetch")
            self._mapped |= zip(missing, self._pool.map(self._table, missing), strict=True)
        for group in groups:
            self._mapped.move_to_end(group)
        found = {group: self._mapped[group] for group in groups}
        while len(self._mapped) > self.window + AHEAD:
            self._mapped.popitem(last=False)
        return found

    def _table(self, group: int, wait: bool = True) -> Any:
        import pyarrow as pa

        one, problem = self.groups[group], ""
        schema = pa.schema({"picture": pa.large_binary()})
        for _ in range(TRIES):
            try:
                found = self.spool.table(self._key(group), schema, one.rows, lambda: self._fetched(one), wait)
                return None if found is None else found.column(0)
            except _Damaged as error:
                problem = str(error).partition("\n")[0]
        told = f"{self.tables.files[one.file].address}, row group {one.number}"
        raise Failed(f"Can't read {told}, in {TRIES} tries: {problem}")

    def _fetched(self, group: Group) -> Iterator[Any]:
        yield from self._decoded(group, self.tables.files[group.file].fetch([group.place]), TOGETHER)

    def _decoded(self, group: Group, data: Fetched, rows: int) -> Iterator[Any]:
        """Record batches of pictures, of so many rows."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(
                data,
                metadata=self.tables.footer(group.file),
                buffer_size=BUFFER,
                pre_buffer=False,  # the whole column, which is fetched already or not needed whole
                page_checksum_verification=True,
            )
            for batch in table.iter_batches(rows, [group.number], [group.leaf], use_threads=False):
                column = batch.column(0)
                if pa.types.is_struct(column.type):
                    column = pc.call_function("struct_field", [column], pc.StructFieldOptions(["bytes"]))
                yield pa.record_batch({"picture": column.cast(pa.large_binary())})
        except (pa.ArrowException, OSError) as error:
            raise _Damaged(error) from None

    def _key(self, group: int) -> str:
        one = self.groups[group]
        return hashed(self.tables.files[one.file].key, one.number, one.leaf)


class _Damaged(Exception):
    """What was fetched whole can't be decoded."""


def _groups(tables: RemoteTables, number: int, column: str) -> Iterator[Group]:
    """Those of one file. A picture is bytes, or a struct with the field `bytes`, as `datasets` writes it."""
    leaves = tables.leaves(number, column)
    leaf = next((leaf for leaf in (f"{column}.bytes", column) if leaf in leaves), None)
    if leaf is None:
        raise InputError(f"{tables.files[number].address}: {column} holds {', '.join(leaves)}, and no pictures.")
    footer = tables.footer(number)
    for group in range(footer.num_row_groups):
        place, told = tables.place(number, group, leaves[leaf]), footer.row_group(group)
        size = told.column(leaves[leaf]).total_uncompressed_size
        yield Group(number, group, told.num_rows, place, size, leaf)


def _most(needed: int) -> int:
    """Bytes of the spool. Raises InputError if fewer are allowed than are in use at once."""
    told = os.environ.get(SPOOL_GB)
    if not told:
        return max(SPOOL, needed)
    try:
        most = int(float(told) * 1e9)
    except (ValueError, OverflowError):
        raise InputError(f"{SPOOL_GB}={told!r} is no number of gigabytes.") from None
    if most < needed:
        raise InputError(f"{SPOOL_GB}={told} is too few: up to {needed / 1e9:.1f} GB of pictures are in use at once.")
    return most
