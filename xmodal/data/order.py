"""The order of samples and their random numbers, as pure functions of (seed, epoch, position).

Nothing is shuffled in memory and no generator has a state: row number `position` of an epoch is found by a keyed
bijection, and the numbers that augment it by hashing. A run that goes on at step s asks for step s.
"""

from __future__ import annotations

import numpy as np

from xmodal.errors import InputError

ORDER, DRAW, SUBSTITUTE, CAPTION, SHARD, WITHIN, VIEW = range(7)  # one stream of random numbers for each use
_ROUNDS = 6  # of the Feistel network; four make a pseudo-random permutation (Luby & Rackoff 1988)


def key(*numbers: int) -> int:
    """64 bits from any integers: the same for ever and everywhere, other for other numbers or another order."""
    state = np.uint64(len(numbers))
    for number in numbers:
        state = _mix(state ^ _mix(np.uint64(number % 2**64)))
    return int(state)


def draws(seed: int, epoch: int, positions: np.ndarray, count: int, stream: int = DRAW) -> np.ndarray:
    """(b,) positions of an epoch -> (b, count) float64 in [0, 1)."""
    start = np.uint64(key(stream, seed, epoch))
    rows = _mix(start ^ _mix(positions.astype(np.uint64)))  # (b,)
    with np.errstate(over="ignore"):
        counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        bits = _mix(rows[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffle(positions: np.ndarray, n: int, seed: int, epoch: int, stream: int = ORDER) -> np.ndarray:
    """Positions (b,) in range(n) -> rows (b,) in range(n): a bijection with its own key for every seed and epoch.

    A Feistel network over the next even number of bits; numbers beyond n are sent through again until they fall
    inside (cycle walking), at most a few times, since fewer than 3/4 of the numbers are beyond.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(key(stream, seed, epoch, n, r)) for r in range(_ROUNDS)]
    rows = positions.astype(np.uint64)
    outside = np.ones(len(rows), dtype=bool)
    while outside.any():
        left, right = rows[outside] >> np.uint64(half), rows[outside] & mask
        for k in keys:
            left, right = right, left ^ (_mix(right ^ k) & mask)
        rows[outside] = (left << np.uint64(half)) | right
        outside = rows >= n
    return rows.astype(np.int64)


def shuffle_each(places: np.ndarray, sizes: np.ndarray, numbers: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Places (b,), each in range(sizes) (b,) -> (b,): for each of the numbers (b,) a bijection of its own.

    As `shuffle`, where many small shuffles are asked for at once, each for a few places.
    """
    half = np.maximum(1, (np.frexp(sizes - 1)[1] + 1) // 2).astype(np.uint64)  # frexp's exponent: bits, of up to 2⁵³
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _mix(np.uint64(key(WITHIN, seed, epoch)) ^ _mix(numbers.astype(np.uint64)))  # (b,)
    found = places.astype(np.uint64)
    rest = np.arange(len(places))  # what is outside still
    while len(rest):
        left, right = found[rest] >> half[rest], found[rest] & mask[rest]
        for r in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(keys[rest] ^ np.uint64(r))) & mask[rest])
        found[rest] = (left << half[rest]) | right
        rest = rest[found[rest] >= sizes[rest].astype(np.uint64)]
    return found.astype(np.int64)


def steps_per_epoch(n: int, batch: int) -> int:
    """Whole global batches in n rows; the rows left over change from epoch to epoch.

    Raises InputError when there are fewer rows than one global batch.
    """
    if n < batch:
        raise InputError(
            f"The data has {n} rows, fewer than one global batch of {batch}. "
            f"Choose --batch-size (per process) so that the batch over all processes is at most {n}."
        )
    return n // batch


def positions_of_step(step: int, n: int, batch: int, part: tuple[int, int]) -> tuple[int, np.ndarray]:
    """The epoch of a step and the positions in it, (b,), of one part [first, last) of the global batch."""
    epoch, number = divmod(step, steps_per_epoch(n, batch))
    return epoch, number * batch + np.arange(*part)


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit of the input moves half of the output's."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
