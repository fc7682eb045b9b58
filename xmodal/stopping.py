"""Asked to stop by SIGTERM, SIGINT or SIGUSR1, a run ends its step, writes a checkpoint and leaves with status 0.

A signal sets a flag, no more: what to do about it all processes decide together, whichever of them was asked. A second
signal ends at once, as it would have without this; the same one within a second is the same request.

A step can't end whose data doesn't come. Then it is given up before it has begun, on all processes: see `unless_late`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from xmodal import attendance, distributed
from xmodal.errors import Stopped

T = TypeVar("T")

# Slurm sends SIGTERM before it kills a job, and SIGUSR1 where --signal says so; SIGINT is Ctrl-C.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


# Slurm may send a job's signal to all of its processes, and torchrun what it gets to its own: that is one request.
ONE_REQUEST = 1.0  # seconds
GRACE = 5.0  # that a step waits for its data once a stop was asked for: after 20 all have to be gone, saving included


@dataclass
class _Flag:
    asked: int | None = None  # the first signal that came
    when: float = 0.0
    watching: bool = False
    elsewhere: float | None = None  # since when another process is known to have been asked
    spread: bool = False  # the others have been told
    waits: bool = False  # for data, and may be made to give it up
    late: bool = False  # a signal of our own is on its way, which does that


_flag = _Flag()


class _Late(BaseException):
    """Breaks off what is waited for; no fault of that, and nobody may take it for one."""


@contextmanager
def watched() -> Iterator[None]:
    """Inside, the first signal only sets the flag. Elsewhere than in the main thread signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _flag
    before = {number: signal.signal(number, _take) for number in SIGNALS}
    _flag = _Flag(watching=True)
    try:
        yield
    finally:
        if _flag.spread:
            attendance.take_back_stop()
        _flag = _Flag()
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether this process was."""
    return _flag.asked is not None


def poll() -> None:
    """Raise Stopped on all processes if any was asked. Every process calls it, as often as the others.

    For what lasts longer than a step, such as an evaluation; outside of `watched` it does nothing.
    """
    if _flag.watching and distributed.any_of(asked()):
        raise Stopped("Stopped.")


def spread() -> None:
    """If this process was asked, tell those of which it waits for one that may wait for data."""
    if asked() and not _flag.spread:
        _flag.spread = True
        attendance.ask_all_to_stop()


def unless_late(get: Callable[[], T]) -> T | None:
    """What it gives, or None where that lasts on after a stop was asked for, here or elsewhere; in the main thread.

    Whether it lasts too long another thread looks: `give_up_if_late`.
    """
    try:
        _flag.waits = True
        return get()
    except _Late:
        return None
    finally:
        _flag.waits = False


def give_up_if_late(waited: float) -> None:
    """From another thread, now and then: break off the wait for data, `waited` seconds long, if it is time for that."""
    now = time.monotonic()
    _flag.elsewhere = (_flag.elsewhere or now) if attendance.is_asked_to_stop() else None
    since = _flag.when if asked() else _flag.elsewhere
    late = since is not None and min(now - since, waited) > GRACE
    if late and _flag.watching and _flag.waits and not _flag.late:
        _flag.late = True
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNALS[0])  # which wakes it from what it reads


def _take(number: int, frame: FrameType | None) -> None:
    if _flag.late:
        _flag.late = False
        if _flag.waits:
            raise _Late
        return
    if number == _flag.asked and time.monotonic() - _flag.when < ONE_REQUEST:
        return
    if _flag.asked is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _flag.asked, _flag.when = number, time.monotonic()
    name = signal.Signals(number).name
    told = f"\n{name}: the step is ended and saved, then the run stops; once more ends it at once.\n"
    os.write(2, told.encode())  # print may be in the middle of a line of its own
