"""Which processes of a run are there, and what each says when one is lost or can't use what it was given.

A process that is gone breaks the connections of the others, wherever they are: they say which one it was and what it
was doing, in one line. Wrong input may be so on one host alone: whoever finds it says so, once, and all end with it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from xmodal.errors import Failed, InputError, SaidElsewhere, Stopped
from xmodal.presence import GOING, STOP, Presence

TIMEOUT = 600  # seconds, as torch has it for NCCL
FIRST_STEP = 1800  # the same until a step is done: weights are fetched, kernels compiled, tables read

_presence: Presence | None = None


def begin(timeout: float) -> None:
    """Give signs of life from now on, where there are other processes; seconds that they wait for each other."""
    global _presence
    if not dist.is_initialized():
        return
    if _presence is None:
        _presence = Presence(dist.get_rank(), dist.get_world_size(), timeout, _store())
        atexit.register(_presence.end)
        dist.barrier()  # so that each finds the first sign of all
    _presence.timeout, _presence.first = timeout, None
    _wait_at_most(max(timeout, FIRST_STEP))


def has_begun() -> bool:
    """Whether there are others, and they have met."""
    return _presence is not None


def doing(what: str) -> None:
    """Say what is done from now on, such as "evaluating": the others name it if this process is lost."""
    if _presence is not None:
        _presence.is_doing(what)


def at(step: int) -> None:
    """Say that so many steps are done; after the first one here, others are waited for no longer than the timeout."""
    if _presence is not None:
        if _presence.first is None:
            _presence.first = step
        elif _presence.step == _presence.first:
            _wait_at_most(_presence.timeout)
        _presence.step = step
        if _presence.doing:
            _presence.is_doing("")


@contextmanager
def losses_named() -> Iterator[None]:
    """Inside, a call that fails because another process is gone raises Failed, which says which one, where and when.

    It raises SaidElsewhere if that one ended because of its input.
    """
    if _presence is None:
        yield
        return
    _presence.state = GOING
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        named = _named(error, _presence)
        if named is error:
            raise
        raise named from error


def last_word(error: Exception) -> Exception:
    """What a process ends with, by what the others say; the user gets to see it unless it is SaidElsewhere.

    Of input that is wrong for several processes in the same way the first speaks, else whoever found it, with its name.
    """
    assert _presence is not None
    named = _named(error, _presence)
    if isinstance(named, SaidElsewhere) or not isinstance(named, InputError):
        return named
    if not _presence.is_to_say(str(named)):
        return SaidElsewhere(str(named))
    return named if _presence.rank == 0 else InputError(f"{_presence.name}: {named}")


def ask_all_to_stop() -> None:
    """Let the others know that this process was asked to stop."""
    if _presence is not None:
        _presence.post(STOP, "asked")


def take_back_stop() -> None:
    """Once all have stopped: what comes after it in this program is another run."""
    if _presence is not None:
        _presence.post(STOP, None)


def is_asked_to_stop() -> bool:
    """Whether another process said so, up to a second ago."""
    return _presence is not None and _presence.stop is not None


def _named(error: BaseException, presence: Presence) -> Any:
    """The error, or what became of another process where that is the reason."""
    if isinstance(error, Stopped | SaidElsewhere):
        return error
    text = f"{error}".strip().partition("\n")[0]
    of_connection = isinstance(error, dist.DistError) or "/gloo/" in text
    if of_connection and isinstance(error, RuntimeError):
        problem = text.rpartition("] ")[2].partition(". ")[0]  # without the place in torch's source, and guesses
        account = presence.account(f"{problem}.")
        return Failed(account) if presence.wrong is None else SaidElsewhere(presence.wrong)
    presence.state = presence.state or f"{type(error).__name__}: {text}"
    return error


def _wait_at_most(seconds: float) -> None:
    change: Any = getattr(dist, "set_timeout", None)  # which older versions of torch have under another name
    (change or dist.distributed_c10d._set_pg_timeout)(timedelta(seconds=seconds))


def _store() -> Any:
    """The launcher's store by a connection of its own, under names of this attempt."""
    # Only of one machine's launcher do all processes know how often they were restarted (pytorch/pytorch#135712); that
    # of several makes a new store each time.
    attempt = _attempt() if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else 0
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        *address, is_master=False, timeout=timedelta(seconds=60)
    )
    return dist.PrefixStore(f"xmodal/{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_again() -> None:
    """After a restart on one machine, join the other processes under names of this attempt.

    With its default rendezvous torchrun keeps one store, which still holds what the processes before told each other,
    and torch 2.14 reads that: addresses at which nobody listens (rendezvous.py, `_create_c10d_store`).
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if kept and _attempt() and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=_store(),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=FIRST_STEP),
        )
