"""`xmodal doctor` says what of the machine is too small for data workers."""

from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import pytest

from xmodal import doctor

GIB = 2**30


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container as docker starts it, on many cores, with limits of a shared machine."""
    sizes = {"/dev/shm": SimpleNamespace(free=64 * 2**20, total=64 * 2**20, used=0)}
    disk = SimpleNamespace(free=GIB, total=100 * GIB, used=99 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: sizes.get(str(path), disk))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 16.0)
    limits = {resource.RLIMIT_NOFILE: (256, 256), resource.RLIMIT_AS: (3 * GIB, 3 * GIB)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)


@pytest.mark.usefixtures("small")
def test_what_is_too_small_is_said_with_what_to_do() -> None:
    wrong = {line.name: line.wrong for line in doctor.room()}
    assert wrong["/dev/shm"].startswith("8 --workers hold 1.1 GiB of pictures ready")
    assert "--shm-size" in wrong["/dev/shm"]
    assert "checkpoints may not fit" in wrong["Disk here"]
    assert "ulimit -n 4096" in wrong["Open files"]
    assert "ulimit -v unlimited" in wrong["Address space"]


def test_what_is_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    much = SimpleNamespace(free=100 * GIB, total=100 * GIB, used=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: much)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lines = doctor.room()
    assert [line for line in lines if line.wrong] == []
    assert {"/dev/shm", "Disk here", "Open files", "Address space"} <= {line.name for line in lines}


def test_workers_are_as_far_ahead_as_it_takes_them_to_be() -> None:
    from xmodal.data.workers import AHEAD

    assert doctor.AHEAD == AHEAD
