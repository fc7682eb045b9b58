"""Files at an address that the user named, such as https://… or s3://…, read through fsspec.

Only PROTOCOLS are taken, each by itself: none that runs a program, unpacks something or is put around another one.
Clients are asked for anew at each call: fsspec keeps one for each process and thread, so none is carried over a fork.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from xmodal.errors import Failed, InputError

T = TypeVar("T")

PROTOCOLS = ("https", "http", "s3", "gs", "gcs", "hf", "az", "abfs", "file", "memory")
TRIES = 4
PAUSE = 0.5  # seconds before the second try, twice that before the third …
AT_ONCE = 8  # ranges, of a file system that doesn't fetch several by itself
READ_AHEAD = 8_000_000  # bytes, where a file is read from end to end
# What tells one state of a file from another of the same size, by the names that file systems have for it.
TAGS = (
    *("ETag", "etag", "blob_id", "md5Hash", "generation", "mtime"),
    *("LastModified", "last_modified", "Last-Modified", "created"),
)
GIVEN_UP_AT_ONCE = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError)


class Range(NamedTuple):
    """Some bytes of a file."""

    address: str
    offset: int
    size: int


class State(NamedTuple):
    """What tells whether a file is the one that was read before."""

    size: int
    tag: str


def is_remote(spec: str) -> bool:
    """Whether it is an address. Raises InputError for one of a kind that isn't read here."""
    if spec.startswith("pipe:"):
        raise InputError(f"{spec[:200]!r} is a command; nothing is run because of a name.")
    if "://" not in spec:
        return False
    if _protocol(spec) not in PROTOCOLS:
        raise InputError(f"{spec[:200]!r} is no address that is read here: those begin with {', '.join(PROTOCOLS)}.")
    return True


def state(address: str) -> State:
    """Raises InputError for a file that isn't there, or that can't be read from any byte on."""
    info = _tried(address, lambda: _client(address).info(_path(address)))
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        raise InputError(f"{address} is no file whose size is known, so nothing in it can be found.")
    return State(info["size"], next((str(info[name]) for name in TAGS if info.get(name)), ""))


def names_in(folder: str) -> list[str]:
    """The addresses of what a folder holds, sorted; none where there is no such folder or it can't be listed.

    Over HTTP there are no folders: fsspec would fetch whatever lies there and look for links in it.
    """
    if _protocol(folder) in ("http", "https"):
        return []
    client = _client(folder)
    try:
        found = client.ls(_path(folder).rstrip("/"), detail=False)
    except Exception:  # each file system has its own way to say that it is no folder
        return []
    return sorted(folder.rstrip("/") + "/" + str(name).rstrip("/").rpartition("/")[2] for name in found)


def matching(pattern: str) -> list[str]:
    """The addresses that a pattern with * stands for, sorted."""
    found = _tried(pattern, lambda: _client(pattern).glob(_path(pattern)))
    return sorted(_client(pattern).unstrip_protocol(str(name)) for name in found)


def read_whole(address: str, most: int) -> bytes | None:
    """The bytes of a file; None if there is none, or it has more than so many bytes."""
    try:
        known = _client(address).info(_path(address))
        return read_ranges([Range(address, 0, known["size"])])[0] if known["size"] <= most else None
    except Exception:  # what is asked for here may be absent, and each file system says that in its own way
        return None


def through(address: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of the open file, which it goes through from its beginning. Raises InputError."""

    def once() -> T:
        with _client(address).open(_path(address), block_size=READ_AHEAD, cache_type="readahead") as file:
            if not file.seekable():
                raise InputError(f"{address}: its server takes no ranges, so nothing in it can be found.")
            return read(file)

    return _tried(address, once)


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """The bytes of ranges, fetched at once. Raises Failed, naming the file, when some can't be had in TRIES tries."""
    found: dict[int, bytes] = {}
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        missing = [i for i in range(len(ranges)) if i not in found]
        for protocol in {_protocol(ranges[i].address) for i in missing}:
            mine = [i for i in missing if _protocol(ranges[i].address) == protocol]
            for i, told in zip(mine, _fetched([ranges[i] for i in mine]), strict=True):
                if isinstance(told, bytes) and len(told) == ranges[i].size:
                    found[i] = told
                else:
                    problem = f"{ranges[i].address}, bytes from {ranges[i].offset:,}: {_problem(told, ranges[i].size)}"
        if len(found) == len(ranges):
            return [found[i] for i in range(len(ranges))]
    raise Failed(f"Can't read {problem}, after {TRIES} tries.")


def cache_folder(what: str = "shards") -> Path:
    """Where something of what is far away is kept, such as indexes of shards: ~/.cache/xmodal/shards, or in
    XDG_CACHE_HOME.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "xmodal", what)


def _fetched(ranges: Sequence[Range]) -> list[Any]:
    """For each its bytes, or the exception instead."""
    client = _client(ranges[0].address)
    if not getattr(client, "async_impl", False):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda one: _exactly(client, one), ranges))
    paths = [_path(one.address) for one in ranges]
    ends = [one.offset + one.size for one in ranges]
    try:
        return client.cat_ranges(paths, [one.offset for one in ranges], ends, on_error="return")
    except Exception as error:  # the connection itself; what is wrong with one range comes as its value
        return [error] * len(ranges)


def _exactly(client: Any, one: Range) -> Any:
    """As above, of a file system that would fetch one range after another, each with a block of what follows it.

    The size that is passed on saves asking for the file's.
    """
    end = one.offset + one.size
    try:
        with client.open(_path(one.address), block_size=READ_AHEAD, cache_type="none", size=end) as file:
            file.seek(one.offset)
            return file.read(one.size)
    except Exception as error:  # as with those that fetch at once
        return error


def _problem(told: Any, size: int) -> str:
    if isinstance(told, bytes):
        return f"{len(told):,} bytes came instead of {size:,}; it has changed, or its server takes no ranges"
    return str(told) or type(told).__name__


def _tried(address: str, action: Callable[[], T]) -> T:
    problem: BaseException | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return action()
        except InputError:
            raise
        except Exception as error:  # of aiohttp, botocore and others, which need not be installed
            problem = _real(error)
            if isinstance(problem, GIVEN_UP_AT_ONCE):
                raise InputError(f"{address} can't be read: {_first_line(problem)}") from None
    raise InputError(f"{address} can't be read, in {TRIES} tries: {_first_line(problem)}")


def _real(error: Exception) -> BaseException:
    """What happened: fsspec says of any failure over HTTP that there is no such file."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return error if cause is None or getattr(cause, "status", None) == 404 else cause


def _first_line(error: BaseException | None) -> str:
    if isinstance(error, FileNotFoundError):
        return "it isn't there."
    return (str(error) or type(error).__name__).splitlines()[0]


def _client(address: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(_protocol(address))
    except ImportError as error:  # it names the package to install
        raise InputError(f"{address} can't be read: {error}") from None


def _path(address: str) -> str:
    """The address as its file system has it."""
    return str(_client(address)._strip_protocol(address))


def _protocol(address: str) -> str:
    return address.partition("://")[0].lower()
