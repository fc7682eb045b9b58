"""Which sample this process is reading: numbers that another process can see, to name it in a stall or a death."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

PROCESS, STEP, ROW = range(3)
NONE = -1  # no step, no row; a process that has not begun

File = TypeVar("File")

_place = np.full(3, NONE)  # of its own, until there is someone to see it


def sit_at(place: np.ndarray) -> None:
    """Write from now on into `place` (3,) int64, which lies in shared memory."""
    global _place
    _place = place
    _place[PROCESS] = os.getpid()


def begin(step: int) -> None:
    _place[STEP], _place[ROW] = step, NONE


def end() -> None:
    _place[STEP] = _place[ROW] = NONE


def each(rows: np.ndarray, files: Iterable[File]) -> Iterator[File]:
    """The files of rows (b,), each row noted while its file is looked for and read; for a source's `images`."""
    for _, file in zip(_noted(rows), files, strict=False):
        yield file


def _noted(rows: np.ndarray) -> Iterator[None]:
    for row in rows.tolist():
        _place[ROW] = row
        yield
    _place[ROW] = NONE
