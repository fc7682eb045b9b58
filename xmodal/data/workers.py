"""Worker processes that read ahead: in which order, how they are stopped, and what they are at when they hold a run up.

They are started as `multiprocessing.set_start_method` says, or else as this Python does it on this system, but for data
that is far away never by a fork alone; what is handed to them can be pickled.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from xmodal import distributed, guards, stopping
from xmodal.data import reading
from xmodal.data.batches import Steps
from xmodal.data.stand_ins import Skipped
from xmodal.errors import Failed, InputError
from xmodal.machine import usable_cores

AHEAD = 4  # batches that each worker has ready or under way
LOOK_EVERY = 0.5  # seconds

Warn = Callable[[int, str], None]


def loader(
    batches: Steps, start: int, stop: int, workers: int = 0, warn: Warn | None = None
) -> Iterator[tuple[int, dict[str, Tensor], list[Skipped]]]:
    """Steps start … stop − 1 in order, each with its batch and what was skipped for it.

    An empty batch is the last: a stop was asked for, and its data did not come in time (`stopping.unless_late`).
    warn: is told, with the number of the step from 1 on, of a step that waits for its data and for which sample, and
    of a loader that is slower than the training; the first from a thread of its own, while the step waits.
    When a worker dies torch raises a RuntimeError, here or in what is done with a batch; see `deaths_named`.
    """
    steps = range(start, stop)
    desk = Desk(batches, start, workers)
    reader = DataLoader(
        _Told(batches, desk.places),
        sampler=steps,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=start_worker if workers else None,
        multiprocessing_context=start_method(batches.source, workers),
        pin_memory=torch.cuda.is_available(),
    )
    slow = guards.SlowLoader(workers, max(1, int(usable_cores())))
    _last.desk = desk
    with _Watch(desk, warn) as watch:
        others = set(multiprocessing.active_children())
        told = iter(reader)
        desk.processes = [p for p in multiprocessing.active_children() if p not in others]
        came = time.perf_counter()
        for step in steps:
            asked = time.perf_counter()
            with watch.waiting(step):
                found = stopping.unless_late(lambda: next(told))
            if found is None:
                for process in desk.processes:  # or the end would wait for each
                    process.terminate()
                yield step, {}, []
                return
            worked, waited, came = asked - came, time.perf_counter() - asked, time.perf_counter()
            if isinstance(found, InputError | Failed):
                raise found
            warning = slow.step(waited, worked)
            if warning and warn is not None and distributed.is_first():
                warn(step + 1, warning)
            yield step, *found


class _Told(Dataset):
    """Batches that say what they are at, and whose errors for the user come as values: torch would put a worker's
    traceback into the message.
    """

    def __init__(self, batches: Steps, places: Tensor) -> None:
        self.batches, self.places = batches, places

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]] | InputError | Failed:
        worker = get_worker_info()
        reading.sit_at(self.places[worker.id if worker else 0].numpy())
        reading.begin(step)
        try:
            return self.batches[step]
        except (InputError, Failed) as error:
            return error
        finally:
            reading.end()


def start_method(source: object, workers: int) -> str | None:
    """How workers are started, where it isn't as usual.

    Clients of what is far away have threads; a fork would copy the locks that these hold, for ever held.
    """
    forks = multiprocessing.get_start_method() == "fork"
    return "forkserver" if workers and forks and getattr(source, "remote", False) else None


def start_worker(_: int) -> None:
    """Workers compute on one thread, and leave signals to a whole job to the process that waits for them.

    A SIGTERM of that process is for them. Where threads that were there before may take it, the sender isn't known,
    and it is the second one that counts.
    """

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    if (parent := multiprocessing.parent_process()) is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=[parent.pid], name="end with the parent", daemon=True).start()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    gc.freeze()  # what was there before the fork: collecting garbage would write to its pages, and so copy them


def _end_with(parent: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does


class Desk:
    """Who reads what: for each worker, or for this process where it reads itself, its place of `reading`."""

    def __init__(self, batches: Steps, start: int, workers: int) -> None:
        self.batches, self.start, self.workers = batches, start, workers
        self.processes: list[BaseProcess] = []
        self.places = torch.full((max(1, workers), 3), reading.NONE).share_memory_()

    def waits_for(self, step: int) -> str:
        """What keeps the data of a step."""
        worker = (step - self.start) % max(1, self.workers)  # they are dealt out in turn
        process, at, row = self.places[worker].tolist()
        name = f"worker {worker}" if self.workers else "this process"
        if process == reading.NONE:
            return f"{name} is still starting"
        if at != step:
            return f"{name} has not begun with it, or hands it over"
        return f"{name} reads {self._sample(row)}" if row != reading.NONE else f"{name} reads its rows at once"

    def was_at(self, process: int) -> str:
        """A worker, by the number of its process, and what it was at."""
        for worker, (number, step, row) in enumerate(self.places.tolist()):
            if number == process:
                sample = f"reading {self._sample(row)}" if row != reading.NONE else "between two samples"
                at = f"{sample}, for step {step + 1}" if step != reading.NONE else "handing a batch over, or waiting"
                return f"Worker {worker} (process {process}), {at},"
        return f"A worker (process {process}) that had not begun to read"

    def _sample(self, row: int) -> str:
        return f"row {row}, {self.batches.source.key(row)}"


class _Last:
    desk: Desk | None = None  # of the last loader; outlives it, as an exception on its way out of a loop ends that


_last = _Last()

_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)")  # as torch says it
_ADVICE = {
    "SIGKILL": "Most likely memory ran out: fewer --workers or a smaller --batch-size take less.",
    "SIGBUS": "Most likely /dev/shm is full: fewer --workers or a smaller --batch-size take less, "
    "docker run --shm-size 8g gives more.",
}


@contextmanager
def deaths_named() -> Iterator[None]:
    """Inside, the death of a worker, which torch may raise anywhere, is a Failed that says what it was reading."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        desk = _last.desk
        with _told_once():
            process = desk and _dead(desk, error)
            if desk is None or process is None:  # a worker of something else, or another fault
                raise
            for other in desk.processes:  # torch forgets them once it has failed
                other.terminate()
            for each in desk.processes:
                each.join(5)
        code = process.exitcode or 0
        by = signal.Signals(-code).name if code < 0 else ""
        how = f"was killed by {by}" if by else f"ended with exit code {code}"
        advice = _ADVICE.get(by, "If the same sample ends the next run, too, take it out of the data.")
        raise Failed(f"{desk.was_at(process.pid or 0)} {how}.\n{advice}") from error
    finally:
        _last.desk = None


@contextmanager
def _told_once() -> Iterator[None]:
    """Torch tells of a dead worker from a signal's handler, too, wherever the main thread is by then; not inside."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _dead(desk: Desk, error: Exception) -> BaseProcess | None:
    """The worker whose death an error tells of: torch names it, or a batch broke off on its way."""
    if isinstance(error, RuntimeError):
        told = _DEATH.match(str(error))
        return next((p for p in desk.processes if told and p.pid == int(told[1])), None)
    ended = wait([p.sentinel for p in desk.processes], timeout=5)
    for process in desk.processes:
        if process.sentinel in ended:
            process.join(5)  # what it had open is closed before it is gone
    return next((p for p in desk.processes if p.exitcode), None)


class _Watch:
    """A thread that speaks up while a step waits for its data, and ends that where a stop was asked for."""

    def __init__(self, desk: Desk, warn: Warn | None) -> None:
        self.desk, self.warn = desk, warn
        self.stall = guards.Stall()
        self.now: tuple[int, float] | None = None  # the step that waits, and since when
        self.over = threading.Event()

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._look, name="watch over the loader", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        began = time.perf_counter()
        self.now = step, began
        yield
        self.now = None
        self.stall.came(time.perf_counter() - began)

    def _look(self) -> None:
        while not self.over.wait(min(LOOK_EVERY, self.stall.patience / 20)):
            if (now := self.now) is None:
                continue
            waited = time.perf_counter() - now[1]
            stopping.give_up_if_late(waited)
            if self.warn is not None and self.stall.waits(waited):
                told = f"its data has not come for {self.stall.patience:g} s: {self.desk.waits_for(now[0])}."
                self.warn(now[0] + 1, told)
