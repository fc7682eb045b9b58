"""Orders of rows: once each, whole windows, exact shares, and each position by itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.orders import Mixed, Order, Shuffled, Windowed

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 1000)
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
# Of the orders as they were first released.
WINDOWED = [3, 4, 5, 2, 0, 1, 6, 8, 7]
MIXED = [3, 2, 4, 1, 3, 0]


def whole(order: Order, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return order.rows(np.arange(len(order)), seed, epoch)


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, window=st.integers(1, 6), seed=SEEDS, epoch=EPOCHS)
def test_windows_have_every_row_once_and_no_shard_is_in_two(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    assert np.array_equal(np.sort(whole(Windowed(sizes, window), seed, epoch)), np.arange(sum(sizes)))
    sizes = [size for size in sizes if size]  # an empty one would leave its window with fewer to see
    rows = whole(Windowed(sizes, window), seed, epoch)
    shards = np.searchsorted(np.cumsum(sizes), rows, side="right")
    runs, seen = [], set[int]()
    for shard in shards.tolist():  # windows, cut where a shard comes that must be of the next
        if not runs or (shard not in runs[-1] and len(runs[-1]) == window):
            runs.append(set())
        runs[-1].add(shard)
    for run in runs:
        assert len(run) <= window
        assert not run & seen
        seen |= run


@settings(deadline=None, max_examples=30)
@given(
    sizes=SIZES,
    window=st.integers(1, 6),
    seed=SEEDS,
    weights=st.lists(st.floats(0.2, 4), min_size=2, max_size=2),
    data=st.data(),
)
def test_a_position_alone_has_the_row_it_has_among_others(
    sizes: list[int], window: int, seed: int, weights: list[float], data: st.DataObject
) -> None:
    windowed = Windowed(sizes, window)
    for order in (windowed, Mixed([windowed, Shuffled(7)], weights, [len(windowed), 7])):
        rows = whole(order, seed, 3)
        some = np.array(data.draw(st.lists(st.integers(0, max(0, len(order) - 1)), max_size=4)), dtype=np.int64)
        if len(order):
            assert order.rows(some, seed, 3).tolist() == rows[some].tolist()
            assert [order.rows(some[i : i + 1], seed, 3)[0] for i in range(len(some))] == rows[some].tolist()


def test_shards_and_rows_are_in_another_order_each_epoch_and_seed() -> None:
    order = Windowed([50] * 40, 4)
    first = whole(order)
    for seed, epoch in ((1, 0), (0, 1)):
        other = whole(order, seed, epoch)
        assert (other == first).sum() < 10
        assert set((other[:200] // 50).tolist()) != set((first[:200] // 50).tolist())
    within = first[:200] % 50
    assert abs(np.corrcoef(within, np.arange(200))[0, 1]) < 6 / 200**0.5


def test_many_shards_take_no_memory_for_their_rows() -> None:
    order = Windowed(np.full(100_000, 10_000), 16)
    rows = order.rows(np.arange(500_000_000, 500_000_512), 0, 0)
    assert len(set((rows // 10_000).tolist())) <= 32


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 3.5), min_size=4, max_size=4),
    seed=SEEDS,
    epoch=EPOCHS,
)
def test_a_mixture_has_of_each_source_its_share_and_no_row_too_often(
    sizes: list[int], weights: list[float], seed: int, epoch: int
) -> None:
    weights = weights[: len(sizes)]
    order = Mixed([Shuffled(n) for n in sizes], weights, sizes)
    rows = whole(order, seed, epoch)
    sources = np.searchsorted(np.cumsum(sizes), rows, side="right")
    counts = Counter(rows.tolist())
    first = 0
    for number, (n, weight) in enumerate(zip(sizes, weights, strict=True)):
        share = round(weight * n)
        assert (sources == number).sum() == share
        assert {counts[row] for row in range(first, first + n)} <= {share // n, -(-share // n)}
        along = np.cumsum(sources == number) - np.arange(1, len(rows) + 1) * share / max(1, len(rows))
        assert np.abs(along).max(initial=0) < len(sizes)  # evenly: each stretch has its share
        first += n


def test_the_third_time_comes_to_another_half_each_epoch() -> None:
    order = Mixed([Shuffled(40), Shuffled(60)], [2.5, 1], [40, 60])
    thirds = []
    for epoch in range(2):
        counts = Counter(whole(order, 0, epoch).tolist())
        assert {counts[row] for row in range(40, 100)} == {1}
        thirds.append({row for row in range(40) if counts[row] == 3})
        assert len(thirds[-1]) == 20
    assert thirds[0] != thirds[1]


def test_billions_of_rows_are_exact() -> None:
    """Three rows among five thousand million: at the positions where 3 · p / (n + 3) passes a whole number."""
    n = 5_000_000_000
    order = Mixed([Shuffled(n), Shuffled(3)], [1, 1], [n, 3])
    theirs = np.array([0, 1_666_666_667, 3_333_333_335])
    assert sorted(order.rows(theirs, 0, 0).tolist()) == [n, n + 1, n + 2]
    assert (order.rows(theirs + 1, 0, 0) < n).all()


def test_values_that_must_never_change() -> None:
    """A run is resumed by a later version: these numbers are a promise, not a measurement."""
    assert whole(Windowed([3, 3, 3], 2)).tolist() == WINDOWED
    assert whole(Mixed([Shuffled(3), Shuffled(2)], [1, 1.5], [3, 2])).tolist() == MIXED
