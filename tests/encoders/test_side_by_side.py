"""Batches side by side: in order, the same bits on any number of threads, and threads as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from xmodal.encoders.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits_in_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384))
    batches = [torch.randn(n, 384) for n in (1, 18, 300, 7, 18, 64, 513)]
    found = {}
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found[threads] = list(side_by_side(model, batches, CPU))
        assert torch.get_num_threads() == threads
    for rows in (found[2], found[5]):
        assert all(torch.equal(a, b) for a, b in zip(rows, found[1], strict=True))
    assert all((a - model(b)).abs().max() < 1e-5 for a, b in zip(found[1], batches, strict=True))
    assert not found[1][0].requires_grad


def test_items_are_taken_as_they_are_needed() -> None:
    torch.set_num_threads(2)
    taken = []

    def items() -> Iterator[Tensor]:
        for i in range(50):
            taken.append(i)
            yield torch.tensor(i)

    results = side_by_side(lambda x: x + 1, items(), CPU)
    assert [int(next(results)) for _ in range(3)] == [1, 2, 3]
    assert len(taken) <= 6
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.get_num_threads() == 2


def test_an_exception_is_the_caller_s() -> None:
    torch.set_num_threads(2)

    def fails(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(fails, range(9), CPU))
    assert torch.get_num_threads() == 2
