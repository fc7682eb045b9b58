"""The order of row groups: every row once, each group for one stretch, few at a time, each position by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.orders import Mixed, Shuffled, Windowed
from xmodal.data.sliding_order import Foretold, Sliding

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
FIRST = [4, 1, 3, 5, 7, 0, 2, 6, 8]  # of the order as it was first released


def whole(order: Sliding | Foretold | Mixed, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return order.rows(np.arange(len(order)), seed, epoch)


def group_of(order: Sliding, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(order.sizes), rows, side="right")


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, window=st.integers(1, 6), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_row_comes_once_and_few_groups_are_in_use_at_a_time(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    order = Sliding(sizes, window)
    rows = whole(order, seed, epoch)
    assert np.array_equal(np.sort(rows), np.arange(sum(sizes)))
    groups = group_of(order, rows)
    spans = [np.flatnonzero(groups == group)[[0, -1]] for group in np.unique(groups)]
    in_use = [sum(first <= place <= last for first, last in spans) for place in range(len(rows))]
    assert max(in_use) <= window


@settings(deadline=None, max_examples=30)
@given(sizes=SIZES, window=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_a_position_alone_has_the_row_it_has_among_others(
    sizes: list[int], window: int, seed: int, data: st.DataObject
) -> None:
    sliding = Sliding(sizes, window)
    for order in (sliding, Mixed([sliding, Shuffled(7)], [1.5, 1], [len(sliding), 7])):
        some = np.array(data.draw(st.lists(st.integers(0, len(order) - 1), max_size=4)), dtype=np.int64)
        assert np.array_equal(order.rows(some, seed, 3), whole(order, seed, 3)[some])


def test_what_comes_is_told_before_it_is_asked_for() -> None:
    told: list[int] = []
    order = Foretold(Sliding([12] * 20, 4), 3, told.extend)
    seen: set[int] = set()
    for place in range(len(order)):
        before = set(told)
        group = int(group_of(order.order, order.rows(np.array([place]), 5, 1))[0])
        assert group in seen | before or place == 0
        seen.add(group)
    assert len(seen) == 20
    told.clear()
    Foretold(Sliding([12] * 4, 4), 3, told.extend).rows(np.arange(8), 5, 1)
    assert not told  # all are in use from the first


def test_a_batch_draws_from_as_many_groups_as_the_window_has_from_the_first_steps_on() -> None:
    order = Sliding([100] * 60, 10)
    groups = group_of(order, whole(order)).reshape(-1, 100)
    assert min(len(np.unique(batch)) for batch in groups[5:-5]) >= 9
    assert len(np.unique(groups[0])) == 4  # so the first step waits for these alone
    assert not np.array_equal(whole(order), whole(order, epoch=1))
    assert not np.array_equal(whole(order), whole(order, seed=1))


def test_few_groups_are_shuffled_as_one() -> None:
    assert np.array_equal(whole(Sliding([5, 0, 9], 2)), Shuffled(14).rows(np.arange(14), 0, 0))


@pytest.mark.parametrize("kind", [Sliding, Windowed])
def test_the_order_of_some_rows_has_these_once_in_their_groups(kind: type[Sliding] | type[Windowed]) -> None:
    rows = np.flatnonzero(np.arange(60) % 3)
    part = kind([10] * 6, 2).of(rows)
    found = part.rows(np.arange(len(part)), 0, 0)
    assert np.array_equal(np.sort(found), np.arange(40))
    assert part.sizes.tolist() == np.bincount(rows // 10).tolist()


def test_the_order_stays_as_it_is() -> None:
    assert whole(Sliding([3, 2, 4], 2)).tolist() == FIRST
