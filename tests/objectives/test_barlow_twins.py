"""`barlow_twins_loss` and `standardise` against their formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import barlow_twins_loss


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def reference(first: Tensor, second: Tensor, lambda_: float) -> Tensor:
    """Correlations one at a time, with BatchNorm's ε."""
    n, d = first.shape

    def column(x: Tensor, k: int) -> Tensor:
        mean = sum(x[i, k] for i in range(n)) / n
        variance = sum((x[i, k] - mean) ** 2 for i in range(n)) / n
        return torch.stack([(x[i, k] - mean) / (variance + 1e-5) ** 0.5 for i in range(n)])

    ours, others = ([column(x, k) for k in range(d)] for x in (first, second))
    loss = first.sum() * 0
    for i in range(d):
        for j in range(d):
            correlation = (ours[i] * others[j]).sum() / n
            loss = loss + ((1 - correlation) ** 2 if i == j else lambda_ * correlation**2)
    return loss


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 99), st.floats(0, 1))
def test_it_is_the_formula(b: int, d: int, seed: int, lambda_: float) -> None:
    inputs = [rows(b, d, seed), rows(b, d, seed + 1)]
    want, got = reference(*inputs, lambda_), barlow_twins_loss(*inputs, lambda_)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-8)


def test_equal_views_of_independent_features_cost_next_to_nothing() -> None:
    signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).double()
    assert barlow_twins_loss(signs, signs).item() < 1e-9
    assert barlow_twins_loss(signs, -signs).item() == pytest.approx(8, rel=1e-4)


def test_rows_that_are_all_equal_correlate_with_nothing() -> None:
    equal = rows(1, 5, 0).detach().expand(6, 5).clone().requires_grad_()
    loss = barlow_twins_loss(equal, equal)
    loss.backward()
    assert loss.item() == pytest.approx(5, rel=1e-9)
    assert equal.grad is not None
    assert equal.grad.isfinite().all()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"first and second .*\(3, 2\) and \(4, 2\)"):
        barlow_twins_loss(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="at least two rows in the global batch, not 1"):
        barlow_twins_loss(torch.ones(1, 2), torch.ones(1, 2))
