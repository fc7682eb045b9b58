"""Tables fetched once for all processes of a host: each is written by whoever needs it first and mapped by all.

A table is a file of a folder, an Arrow stream named by a key that says all that it was made from. It is written beside
under a lock, which the system lets go of when its holder dies, and renamed; so it is there whole or not at all. What is
found is looked through before it is used: another key, another number of rows, or offsets that lead outside, and it is
made anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xmodal.errors import Failed

KEY = b"xmodal"  # of a schema's metadata
ENDING, BEGUN = ".arrow", ".part"
FREE = 2_000_000_000  # bytes of the disk that are left to others, and to what is made next
ELSEWHERE = "XDG_CACHE_HOME names another place."
CHANGED = (FileNotFoundError, NotADirectoryError)


class Spool:
    """Tables in a folder, which others may use as well.

    most: bytes; when there are more, or the disk is nearly full, those that were taken up longest ago go. Whoever has
    mapped one keeps it.
    """

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder, self.most = folder, most

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{ENDING}"

    def table(self, key: str, schema: Any, rows: int, make: Callable[[], Iterable[Any]], wait: bool = True) -> Any:
        """The table, mapped. Without `wait` None, where another process is making it just now.

        key: letters and digits, those of a hash. make: its record batches as they come, called where it isn't there.
        Raises Failed when there is no room, and what `make` raises.
        """
        schema = schema.with_metadata({**(schema.metadata or {}), KEY: key.encode()})
        while True:
            if (found := mapped(self.path(key), schema, rows)) is not None:
                with suppress(*CHANGED):  # unlinked meanwhile by another process, and mapped here
                    os.utime(self.path(key))
                return found
            with self._begun(key, wait) as file:
                if file is None:
                    return None
                if file >= 0 and mapped(self.path(key), schema, rows) is None:
                    self._write(file, key, schema, make)
            self._make_room(key)

    @contextmanager
    def _begun(self, key: str, wait: bool) -> Iterator[int | None]:
        """The file to write to, locked; −1 where it was finished meanwhile, None where another holds it."""
        path = self.folder / f"{key}{BEGUN}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Failed(f"Cannot write {path}: {error.strerror}. {ELSEWHERE}") from None
        try:
            yield (file if _is(file, path) else -1) if _locked(file, path, wait) else None
        finally:
            os.close(file)

    def _write(self, file: int, key: str, schema: Any, make: Callable[[], Iterable[Any]]) -> None:
        import pyarrow as pa

        path = self.folder / f"{key}{BEGUN}"
        batches = make()
        try:
            os.ftruncate(file, 0)  # what a process left that died over it
            with os.fdopen(os.dup(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                for batch in batches:
                    stream.write_batch(batch.cast(schema))
            os.fsync(file)
            path.rename(self.path(key))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.ftruncate(file, 0)
            raise Failed(f"No room for {path}: {error.strerror}. {ELSEWHERE}") from None

    def _make_room(self, key: str) -> None:
        """Unlink what was taken up longest ago, until the rest is no more than it may be, and the disk isn't full."""
        if self.most is None:
            return
        there = []
        for path in self.folder.iterdir():
            try:
                told = path.stat()
            except CHANGED:  # by another process that makes room
                continue
            there.append((told.st_mtime_ns, told.st_size, path))
        left = max(sum(size for _, size, _ in there) - self.most, FREE - shutil.disk_usage(self.folder).free)
        for _, size, path in sorted(there):
            if left <= 0:
                return
            if path.name != f"{key}{ENDING}" and self._unlinked(path):
                left -= size

    def _unlinked(self, path: Path) -> bool:
        """Whether it could go: no file that is being written, and none that isn't of a spool."""
        if path.suffix == ENDING:
            path.unlink(missing_ok=True)
            return True
        if path.suffix != BEGUN:
            return False
        with self._begun(path.stem, wait=False) as file:
            if file is None or file < 0:
                return False
            path.unlink(missing_ok=True)
            return True


def mapped(path: Path, schema: Any, rows: int) -> Any:
    """The table of a file; None where there is none, or another one, or half of it."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            found = pa.ipc.open_stream(file).read_all()
        if not found.schema.equals(schema, check_metadata=True) or len(found) != rows:
            return None
        found.validate(full=True)  # whatever offsets say, nothing outside of the file is read afterwards
    except (OSError, ValueError, pa.ArrowException):
        return None
    return found


def _locked(file: int, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # some file systems of clusters can't
        raise Failed(f"Cannot lock {path}: {error.strerror}. {ELSEWHERE}") from None
    return True


def _is(file: int, path: Path) -> bool:
    """Whether an open file is the one of that name, and not one that was renamed or unlinked since."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except CHANGED:
        return False
