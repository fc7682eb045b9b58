"""The order of samples: a bijection in every epoch, even in its statistics, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.order import DRAW, ORDER, SUBSTITUTE, draws, key, positions_of_step, shuffle, steps_per_epoch
from xmodal.errors import InputError

SEEDS = st.integers(0, 2**63 - 1)
# Of the mixing as it was first released.
KEY_OF_0 = 627405149472732430
KEY_OF_1_2_3 = 14986807719678709643
ORDER_OF_10 = [3, 9, 5, 4, 6, 1, 8, 7, 2, 0]
FIRST_DRAWS = [0.16283388229763396, 0.5117107855005371]


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(n: int, seed: int, epoch: int) -> None:
    rows = shuffle(np.arange(n), n, seed, epoch)
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(n))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 10**12), seed=SEEDS, data=st.data())
def test_a_position_alone_has_the_row_it_has_among_others(n: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9, unique=True)))
    together = shuffle(positions, n, seed, 3)
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together.tolist())) == len(positions)
    alone = [shuffle(positions[i : i + 1], n, seed, 3)[0] for i in range(len(positions))]
    assert together.tolist() == alone


def test_seed_epoch_and_stream_change_the_order() -> None:
    positions = np.arange(1000)
    orders = [
        shuffle(positions, 1000, seed, epoch, stream)
        for seed, epoch, stream in ((0, 0, ORDER), (1, 0, ORDER), (0, 1, ORDER), (0, 0, SUBSTITUTE))
    ]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 10  # one is expected by chance


def test_the_order_is_even() -> None:
    """Over many epochs each row stands at each position equally often, and neighbours are not neighbours."""
    n, epochs = 13, 6000
    table = np.array([shuffle(np.arange(n), n, 7, epoch) for epoch in range(epochs)])
    counts = np.array([np.bincount(table[:, position], minlength=n) for position in range(n)])
    expected = epochs / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5  # six deviations
    rows = shuffle(np.arange(20_000), 20_000, 7, 0)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 6 / 20_000**0.5
    assert abs(np.corrcoef(rows, np.arange(20_000))[0, 1]) < 6 / 20_000**0.5


def test_draws_are_uniform_and_independent() -> None:
    u = draws(3, 1, np.arange(20_000), 8)
    assert u.shape == (20_000, 8)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    deviation = 20_000**-0.5
    assert np.abs(u.mean(0) - 0.5).max() < 6 * deviation * 12**-0.5
    between = np.corrcoef(u.T) - np.eye(8)
    assert np.abs(between).max() < 6 * deviation
    along = [np.corrcoef(u[:-1, i], u[1:, i])[0, 1] for i in range(8)]
    assert np.abs(along).max() < 6 * deviation
    cells = np.bincount((u[:, 0] * 100).astype(int), minlength=100)
    assert ((cells - 200) ** 2 / 200).sum() < 99 + 6 * (2 * 99) ** 0.5


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, epoch=st.integers(0, 10**6), positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_a_draw_depends_on_its_own_position_only(seed: int, epoch: int, positions: list[int]) -> None:
    together = draws(seed, epoch, np.array(positions), 5)
    for position, row in zip(positions, together, strict=True):
        assert np.array_equal(draws(seed, epoch, np.array([position]), 5)[0], row)
        assert np.array_equal(draws(seed, epoch, np.array([position]), 2)[0], row[:2])  # more draws are only added


@settings(deadline=None)
@given(numbers=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=6))
def test_key_sees_every_number_and_their_order(numbers: list[int]) -> None:
    assert 0 <= key(*numbers) < 2**64
    assert key(*numbers) == key(*numbers)
    assert key(*numbers) != key(*numbers, 0)
    for i, number in enumerate(numbers):
        assert key(*numbers) != key(*numbers[:i], number + 1, *numbers[i + 1 :])
    if len(numbers) > 1 and numbers[0] % 2**64 != numbers[-1] % 2**64:
        assert key(*numbers) != key(numbers[-1], *numbers[1:-1], numbers[0])


def test_one_bit_in_moves_half_the_bits_out() -> None:
    moved = [bin(key(s, 5) ^ key(s ^ (1 << bit), 5)).count("1") for s in range(40) for bit in range(64)]
    assert abs(np.mean(moved) - 32) < 0.5
    assert min(moved) > 8


def test_values_that_must_never_change() -> None:
    """A run is resumed by a later version: these numbers are a promise, not a measurement."""
    assert key(0) == KEY_OF_0
    assert key(1, 2, 3) == KEY_OF_1_2_3
    assert shuffle(np.arange(10), 10, 0, 0).tolist() == ORDER_OF_10
    assert draws(0, 0, np.array([0]), 2, DRAW).tolist() == [FIRST_DRAWS]


def test_steps_and_epochs() -> None:
    assert steps_per_epoch(10, 4) == 2  # the rest of the epoch's order is left out
    assert positions_of_step(0, 10, 4, (0, 4))[0] == 0
    epoch, positions = positions_of_step(3, 10, 4, (0, 4))
    assert (epoch, positions.tolist()) == (1, [4, 5, 6, 7])
    assert positions_of_step(3, 10, 4, (2, 4))[1].tolist() == [6, 7]


@settings(deadline=None)
@given(
    batch=st.sampled_from([4, 8, 12]),
    processes=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 99),
    more=st.integers(0, 50),
)
def test_parts_make_up_the_global_batch(batch: int, processes: int, step: int, more: int) -> None:
    n, share = batch + more, batch // processes
    whole = positions_of_step(step, n, batch, (0, batch))
    parts = [positions_of_step(step, n, batch, (r * share, (r + 1) * share)) for r in range(processes)]
    assert {epoch for epoch, _ in parts} == {whole[0]}
    assert np.array_equal(np.concatenate([p for _, p in parts]), whole[1])
    assert whole[1].max() < n


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 300), batch=st.integers(1, 40), epoch=st.integers(0, 5), seed=SEEDS)
def test_an_epochs_steps_are_the_beginning_of_its_order(n: int, batch: int, epoch: int, seed: int) -> None:
    if n < batch:
        n += batch
    steps = steps_per_epoch(n, batch)
    found = [positions_of_step(epoch * steps + number, n, batch, (0, batch)) for number in range(steps)]
    assert {e for e, _ in found} == {epoch}
    rows = np.concatenate([shuffle(positions, n, seed, epoch) for _, positions in found])
    assert rows.tolist() == shuffle(np.arange(n), n, seed, epoch)[: steps * batch].tolist()
    assert len(set(rows.tolist())) == steps * batch > n - batch


def test_fewer_rows_than_a_batch() -> None:
    with pytest.raises(InputError, match="7 rows, fewer than one global batch of 8"):
        steps_per_epoch(7, 8)
