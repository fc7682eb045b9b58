"""The effective rank, where it is known."""

from __future__ import annotations

import pytest
import torch

from xmodal.evaluators.spread import effective_rank


def test_known_ranks() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1)  # collapsed
    assert effective_rank(torch.eye(3).repeat(20, 1)) == pytest.approx(3)
    few = torch.zeros(40, 16)
    few[torch.arange(40), torch.arange(40) % 4] = 1
    assert effective_rank(few) == pytest.approx(4)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_is_the_formula(shape: tuple[int, int]) -> None:
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = torch.linalg.svdvals(rows)
    p = p / p.sum()
    assert effective_rank(rows) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-9)
    assert effective_rank(3 * rows) == pytest.approx(effective_rank(rows))
    assert 1 <= effective_rank(rows) <= 7


def test_wrong_input() -> None:
    for rows, said in ((torch.ones(3), "must be"), (torch.zeros(3, 2), "all zero"), (torch.ones(2, 2) / 0, "finite")):
        with pytest.raises(ValueError, match=said):
            effective_rank(rows)
