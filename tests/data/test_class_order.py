"""Classes × pictures: what a batch holds, and that an epoch passes over everything."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xmodal.data.class_order import ClassOrder, shuffle_each
from xmodal.errors import InputError

sizes_of_classes = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def labels_of(sizes: list[int]) -> np.ndarray:
    """(n,) labels in a mixed order."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(len(labels)).permutation(labels)


def batches(order: ClassOrder, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """(steps, classes, k) rows of an epoch."""
    rows = order.rows(np.arange(len(order)), seed, epoch)
    return rows.reshape(-1, order.classes, order.k)


@given(sizes_of_classes, st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
def test_a_batch_has_k_pictures_of_different_classes(sizes: list[int], classes: int, k: int, epoch: int) -> None:
    assume(sum(n >= min(2, k) for n in sizes) >= classes)
    labels = labels_of(sizes)
    order = ClassOrder(labels, classes * k, k)
    found = batches(order, epoch=epoch)
    assert len(found) >= 1
    for batch in found:
        kinds = labels[batch]  # (classes, k)
        assert (kinds == kinds[:, :1]).all()
        assert len(set(kinds[:, 0])) == classes
        for rows in batch:
            own = sizes[labels[rows[0]]]
            assert len(set(rows.tolist())) == min(k, own)  # one that is small is whole before any comes twice
    # No picture comes in two batches.
    each = Counter(row for batch in found for row in set(batch.ravel().tolist()))
    assert set(each.values()) == {1}


@given(sizes_of_classes, st.integers(1, 6), st.integers(1, 5))
def test_an_epoch_has_as_many_batches_as_there_can_be(sizes: list[int], classes: int, k: int) -> None:
    groups = [max(1, n // k) for n in sizes if n >= min(2, k)]
    assume(len(groups) >= classes)
    order = ClassOrder(labels_of(sizes), classes * k, k)
    steps = len(order) // (classes * k)
    assert sum(min(g, steps) for g in groups) >= steps * classes
    assert sum(min(g, steps + 1) for g in groups) < (steps + 1) * classes


@given(sizes_of_classes, st.integers(2, 5), st.integers(2, 4), st.data())
def test_any_positions_alone_are_what_they_are_in_the_epoch(
    sizes: list[int], classes: int, k: int, data: st.DataObject
) -> None:
    assume(sum(n > 1 for n in sizes) >= classes)
    order = ClassOrder(labels_of(sizes), classes * k, k)
    whole = order.rows(np.arange(len(order)), 7, 2)
    some = np.array(data.draw(st.lists(st.integers(0, len(order) - 1), max_size=9)), dtype=np.int64)
    assert np.array_equal(order.rows(some, 7, 2), whole[some])


def test_balanced_classes_are_gone_through_whole() -> None:
    labels = labels_of([40] * 10)
    order = ClassOrder(labels, 20, 4)
    assert len(order) == 400
    for epoch in range(3):
        assert sorted(batches(order, epoch=epoch).ravel()) == list(range(400))


def test_epochs_and_seeds_differ_and_classes_meet_all_others() -> None:
    labels = labels_of([40] * 10)
    order = ClassOrder(labels, 20, 4)
    epochs = [batches(order, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({epoch.tobytes() for epoch in epochs}) == 3
    together = {frozenset(labels[batch][:, 0].tolist()) for batch in epochs[0]}
    assert len(together) > 8  # of the 20 batches of one epoch
    met = {(a, b) for seed in range(12) for batch in batches(order, seed) for a in labels[batch][:, 0]
           for b in labels[batch][:, 0] if a < b}  # fmt: skip
    assert len(met) == 45


def test_over_epochs_every_picture_of_uneven_classes_comes() -> None:
    sizes = [100, 7, 7, 5, 3, 2, 1]
    labels = labels_of(sizes)
    order = ClassOrder(labels, 8, 4)
    seen = {row for epoch in range(60) for row in batches(order, epoch=epoch).ravel().tolist()}
    assert {labels[row] for row in range(len(labels)) if row not in seen} == {6}  # the class of one picture


def test_what_is_left_out_is_counted() -> None:
    order = ClassOrder(np.array([0, 0, 1, -1, -1, 2, 2, 3]), 4, 2)
    assert order.left_out == {"no class": 2, "no other picture of their class": 2}
    assert ClassOrder(np.array([0, 1]), 2, 1).left_out.total() == 0


def test_too_few_classes() -> None:
    labels = labels_of([5, 5, 1])
    with pytest.raises(InputError, match="needs 3 classes, and there are 2 with more than one picture"):
        ClassOrder(labels, 6, 2)
    with pytest.raises(InputError, match="2 doesn't divide it"):
        ClassOrder(labels, 5, 2)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(0, 2))
def test_many_ranges_are_shuffled_at_once(sizes: list[int], epoch: int) -> None:
    n, whose = np.repeat(sizes, sizes), np.repeat(np.arange(len(sizes)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    found = shuffle_each(positions, n, whose, 3, epoch, 9)
    for number, size in enumerate(sizes):
        assert sorted(found[whose == number]) == list(range(size))
    assert np.array_equal(shuffle_each(positions[::2], n[::2], whose[::2], 3, epoch, 9), found[::2])


def test_ranges_of_one_size_have_bijections_of_their_own() -> None:
    positions = np.tile(np.arange(50), 4)
    found = shuffle_each(positions, np.full(200, 50), np.repeat(np.arange(4), 50), 0, 0, 9).reshape(4, 50)
    assert len({row.tobytes() for row in found}) == 4
    assert (found != np.arange(50)).mean() > 0.9
