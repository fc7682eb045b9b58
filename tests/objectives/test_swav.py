"""`swav_loss` and `sinkhorn` against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import sinkhorn, swav_loss


def scores(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(*shape, generator=g, dtype=torch.float64) - 1).to(dtype).requires_grad_()


def codes_of(given_scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The reference code's steps (main_swav.py, distributed_sinkhorn), Q is prototypes × rows."""
    q = torch.exp(given_scores.detach() / epsilon).T
    q = q / q.sum()
    prototypes, rows = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / rows
    return (q * rows).T


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99), st.floats(0.05, 1), st.integers(1, 5))
def test_codes_are_those_of_the_reference_code(b: int, k: int, seed: int, epsilon: float, iterations: int) -> None:
    given_ = scores(b, k, seed=seed)
    found = sinkhorn(given_, epsilon, iterations)
    torch.testing.assert_close(found, codes_of(given_, epsilon, iterations), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(b, dtype=torch.float64))
    assert not found.requires_grad


def test_with_many_iterations_the_prototypes_are_shared_evenly() -> None:
    found = sinkhorn(scores(30, 5), iterations=200)
    torch.testing.assert_close(found.sum(0), torch.full((5,), 6.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_scores_of_any_size_have_codes_in_float32() -> None:
    given_ = 30 * scores(40, 8, dtype=torch.float32).detach()
    given_[0] -= 1e4  # far from all prototypes
    found = sinkhorn(given_)
    assert found.isfinite().all()
    torch.testing.assert_close(found, sinkhorn(given_.double()).float(), rtol=0, atol=2e-3)
    assert torch.exp(given_ / 0.05).isinf().any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 6), st.integers(0, 99), st.floats(0.05, 2), st.data())
def test_the_loss_is_the_formula(b: int, views: int, k: int, seed: int, t: float, data: st.DataObject) -> None:
    assigned = data.draw(st.integers(1, views))
    given_ = scores(b, views, k, seed=seed)
    codes = torch.stack([sinkhorn(given_[:, a]) for a in range(assigned)], 1)
    total = given_.sum() * 0
    for a in range(assigned):
        others = [v for v in range(views) if v != a]
        for v in others:
            for row in range(b):
                p = torch.exp(given_[row, v] / t) / torch.exp(given_[row, v] / t).sum()
                total = total - (codes[row, a] * p.log()).sum() / (b * len(others) * assigned)
    got = swav_loss(given_, codes, temperature=t)
    torch.testing.assert_close(got, total, rtol=1e-10, atol=1e-12)
    (found,), (wanted,) = torch.autograd.grad(got, [given_]), torch.autograd.grad(total, [given_])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_codes_have_no_gradient_and_equal_scores_cost_the_logarithm_of_prototypes() -> None:
    flat = torch.zeros(4, 3, 10, dtype=torch.float64, requires_grad=True)
    codes = torch.stack([sinkhorn(flat[:, 0]), sinkhorn(flat[:, 1])], 1).requires_grad_()
    loss = swav_loss(flat, codes)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10), rel=1e-12)
    assert codes.grad is None


def test_what_does_not_fit_is_named() -> None:
    two, one = torch.ones(4, 2, 5), torch.ones(4, 1, 5)
    for first, second in (
        (two, torch.ones(4, 2, 6)),
        (two, torch.ones(3, 2, 5)),
        (one, one),
        (two, torch.ones(4, 3, 5)),
    ):
        with pytest.raises(ValueError, match=r"scores must be \(b, v, k\)"):
            swav_loss(first, second)
    with pytest.raises(ValueError, match="temperature"):
        swav_loss(two, two, temperature=0)
    with pytest.raises(ValueError, match=r"\(4, 2, 5\), 0.05 and 3"):
        sinkhorn(two)
    with pytest.raises(ValueError, match="at least one iteration"):
        sinkhorn(two[:, 0], iterations=0)
