"""The queue goes round, loses nothing, and is in the checkpoint; several processes are played one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xmodal import distributed
from xmodal.encoders.queue import Queue


def batch(first: int, n: int) -> Tensor:
    return torch.arange(first, first + n).float()[:, None].expand(n, 2)


def test_it_holds_the_latest_rows_whatever_the_batch() -> None:
    queue, came = Queue(7, 2), 0
    for n in (3, 3, 3, 7, 1, 0, 5):
        assert queue.full == (came >= 7)
        queue.enqueue(batch(came, n))
        came += n
        latest = set(range(max(0, came - 7), came))
        assert latest <= {int(v) for v in queue.rows[:, 0].tolist()}
    assert sorted(queue.rows[:, 0].tolist()) == list(range(came - 7, came))


def test_a_batch_that_does_not_fit_before_the_end_goes_on_at_the_beginning() -> None:
    queue = Queue(5, 2)
    queue.enqueue(batch(0, 3))
    queue.enqueue(batch(3, 4))
    assert queue.rows[:, 0].tolist() == [5, 6, 2, 3, 4]


def test_it_begins_with_random_unit_rows_of_its_seed() -> None:
    torch.manual_seed(1)
    one = Queue(50, 8)
    torch.manual_seed(2)
    assert torch.equal(one.rows, Queue(50, 8).rows)
    assert not torch.equal(one.rows, Queue(50, 8, seed=1).rows)
    torch.testing.assert_close(one.rows.norm(dim=1), torch.ones(50))


def test_a_run_that_goes_on_has_the_queue_it_had() -> None:
    queue = Queue(5, 2)
    queue.enqueue(batch(0, 4))
    again = Queue(5, 2, seed=9)
    again.load_state_dict(queue.state_dict())
    for each in (queue, again):
        each.enqueue(batch(4, 3))
    assert torch.equal(queue.rows, again.rows)
    assert again.full


def test_rows_of_all_processes_come_in_the_order_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rows", lambda b: distributed.Rows((b, 2), 0))
    monkeypatch.setattr(distributed, "all_gather", lambda x, spread: torch.cat([x, batch(100, 2)]))
    queue = Queue(6, 2)
    queue.enqueue(batch(0, 3))
    assert queue.rows[:5, 0].tolist() == [0, 1, 2, 100, 101]


def test_each_process_has_its_part_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, parts = Queue(7, 2), []
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(queue.part)
    assert torch.equal(torch.cat(parts), queue.rows)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="A batch of 8 rows doesn't fit into a queue of 7"):
        Queue(7, 2).enqueue(batch(0, 8))
    with pytest.raises(ValueError, match=r"rows must be \(b, 2\), not \(3, 4\)"):
        Queue(7, 2).enqueue(torch.ones(3, 4))
