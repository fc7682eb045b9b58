"""The spool: each table made once, whole or not there, within its size, and never another than the one asked for."""

from __future__ import annotations

import errno
import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from tests.forks import Forks
from xmodal.data import spool
from xmodal.data.spool import KEY, Spool, mapped
from xmodal.errors import Failed

SCHEMA = pa.schema({"picture": pa.large_binary()})


def batch(*cells: bytes) -> Any:
    return pa.record_batch([pa.array(cells, pa.large_binary())], schema=SCHEMA)


def once(*cells: bytes) -> Callable[[], Iterator[Any]]:
    return lambda: iter([batch(*cells)])


def never() -> Iterator[Any]:
    raise AssertionError("made again")


def cells(table: Any) -> list[bytes]:
    return table.column(0).to_pylist()


def test_a_table_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    made: list[int] = []

    def slowly() -> Iterator[Any]:
        made.append(1)
        time.sleep(0.2)
        yield batch(b"a")
        yield batch(b"b", b"")

    found: list[Any] = []
    each = [Spool(tmp_path / "s") for _ in range(4)]  # as in as many processes
    threads = [threading.Thread(target=lambda one=one: found.append(one.table("k", SCHEMA, 3, slowly))) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [cells(table) for table in found] == [[b"a", b"b", b""]] * 4
    assert made == [1]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["k.arrow"]


def test_who_does_not_wait_gets_none_while_another_makes_it(tmp_path: Path) -> None:
    with (tmp_path / "k.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert Spool(tmp_path).table("k", SCHEMA, 1, never, wait=False) is None
    assert cells(Spool(tmp_path).table("k", SCHEMA, 1, once(b"a"), wait=False)) == [b"a"]


def test_what_was_taken_up_longest_ago_goes_first_and_stays_readable(tmp_path: Path) -> None:
    ours = Spool(tmp_path, 40_000)
    (tmp_path / "notes.txt").write_text("not of the spool")
    first = ours.table("k0", SCHEMA, 1, once(b"0" * 9000))
    for number in range(1, 12):
        ours.table("k1", SCHEMA, 1, once(b"1" * 9000))  # in use all the time
        ours.table(f"k{number}", SCHEMA, 1, once(b"%d" % (number % 10) * 9000))
        time.sleep(0.002)  # the clock of files ticks in milliseconds
        assert sum(path.stat().st_size for path in tmp_path.glob("*.arrow")) <= 40_000
    assert {path.name for path in tmp_path.iterdir()} >= {"k1.arrow", "k11.arrow", "notes.txt"}
    assert not (tmp_path / "k0.arrow").exists()
    assert cells(first) == [b"0" * 9000]


def test_on_a_disk_that_is_nearly_full_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Spool(tmp_path, 10**12)
    for number in range(3):
        ours.table(f"k{number}", SCHEMA, 1, once(b"a"))
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    assert cells(ours.table("k3", SCHEMA, 1, once(b"b"))) == [b"b"]
    assert [path.name for path in tmp_path.iterdir()] == ["k3.arrow"]


def test_where_files_cannot_be_locked_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(spool.fcntl, "flock", refused)
    with pytest.raises(Failed, match=r"Cannot lock .*k\.part: Function not implemented\. XDG_CACHE_HOME"):
        Spool(tmp_path).table("k", SCHEMA, 1, never)


def test_what_is_torn_or_of_something_else_is_made_anew(tmp_path: Path) -> None:
    ours, path = Spool(tmp_path), tmp_path / "k.arrow"
    ours.table("k", SCHEMA, 2, once(b"abc", b"de"))
    whole = path.read_bytes()
    ours.table("other", SCHEMA, 2, once(b"abc", b"de"))
    stolen = (tmp_path / "other.arrow").read_bytes()
    for wrong in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-8][:-40], bytes(len(whole)), stolen):
        path.unlink()
        path.write_bytes(wrong)
        assert cells(ours.table("k", SCHEMA, 2, once(b"xyz", b"de"))) == [b"xyz", b"de"]
    path.unlink()
    path.symlink_to(tmp_path / "other.arrow")
    assert cells(ours.table("k", SCHEMA, 2, once(b"1", b"2"))) == [b"1", b"2"]
    assert cells(ours.table("other", SCHEMA, 2, never)) == [b"abc", b"de"]  # what the link led to


def test_no_flipped_byte_leads_outside_of_the_file(tmp_path: Path) -> None:
    Spool(tmp_path).table("k", SCHEMA, 2, once(b"abc", b"de"))
    path, schema = tmp_path / "k.arrow", SCHEMA.with_metadata({KEY: b"k"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.unlink()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        if (found := mapped(path, schema, 2)) is not None:
            cells(found)


def test_a_kill_while_it_is_made_leaves_a_spool_that_works(tmp_path: Path, forks: Forks) -> None:
    child = forks.start("stream_children.killed_in_the_spool", folder=tmp_path)
    assert child.wait() == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["k.part"]
    assert (tmp_path / "k.part").stat().st_size > 100_000  # as far as it came
    assert cells(Spool(tmp_path).table("k", SCHEMA, 2, once(b"a", b"b"))) == [b"a", b"b"]
    (tmp_path / "left.part").write_bytes(bytes(50_000))  # of one that nobody asks for again
    Spool(tmp_path, 1000).table("m", SCHEMA, 1, once(b"c"))
    assert not (tmp_path / "left.part").exists()


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool.os, "fsync", full)
    with pytest.raises(Failed, match=r"No room for .*k\.part: No space left on device\. XDG_CACHE_HOME"):
        Spool(tmp_path).table("k", SCHEMA, 1, once(b"a"))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]
    monkeypatch.undo()
    assert cells(Spool(tmp_path).table("k", SCHEMA, 1, once(b"a"))) == [b"a"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="Cannot write .*Not a directory"):
        Spool(tmp_path / "file" / "spool").table("k", SCHEMA, 1, never)
