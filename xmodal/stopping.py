"""Asked to stop by SIGTERM, SIGINT or SIGUSR1, a run ends its step, writes a checkpoint and leaves with status 0.

A signal sets a flag, no more: what to do about it all processes decide together, whichever of them was asked. A second
signal ends at once, as it would have without this; the same one within a second is the same request.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xmodal import distributed
from xmodal.errors import Stopped

# Slurm sends SIGTERM before it kills a job, and SIGUSR1 where --signal says so; SIGINT is Ctrl-C.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


# Slurm may send a job's signal to all of its processes, and torchrun what it gets to its own: that is one request.
ONE_REQUEST = 1.0  # seconds


class _Flag:
    asked: int | None = None  # the first signal that came
    when = 0.0
    watching = False


_flag = _Flag()


@contextmanager
def watched() -> Iterator[None]:
    """Inside, the first signal only sets the flag. Elsewhere than in the main thread signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _take) for number in SIGNALS}
    _flag.asked, _flag.watching = None, True
    try:
        yield
    finally:
        _flag.asked, _flag.watching = None, False
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


def _take(number: int, frame: FrameType | None) -> None:
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
