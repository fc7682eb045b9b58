"""Batches side by side on a CPU, each on one thread: as fast as one after the other on all, and always the same bits.

A matrix product that several threads share is cut up by how many they are, and rounds accordingly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[R]:
    """function(item) of each, in order and without gradients; as many at a time as torch has threads here.

    While results are taken torch has one thread. On another device than a CPU one item comes after the other.
    """
    if device.type != "cpu":
        with torch.inference_mode():
            yield from map(function, items)
        return
    threads = torch.get_num_threads()

    def one_thread() -> None:
        torch.set_num_threads(1)

    def of(item: T) -> R:
        with torch.inference_mode():  # which each thread has for itself
            return function(item)

    coming: deque[Future[R]] = deque()
    one_thread()
    try:
        with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
            try:
                for item in items:
                    coming.append(pool.submit(of, item))
                    if len(coming) > threads:  # one more than are computed, so that no thread waits for the next
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for one in coming:
                    one.cancel()
    finally:
        torch.set_num_threads(threads)
