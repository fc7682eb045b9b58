"""`n_pair_loss` against its formula written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import n_pair_loss


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.0, 0.02, 3.0]))
def test_it_is_the_formula(b: int, d: int, seed: int, weight: float) -> None:
    anchor, positive = inputs = [rows(b, d, seed), rows(b, d, seed + 1)]
    want = anchor.sum() * 0
    for i in range(b):  # log(1 + Σ over the other classes of exp(f · f_j − f · f_i)), equation 4
        others = [(anchor[i] @ positive[j] - anchor[i] @ positive[i]).exp() for j in range(b) if j != i]
        want = want + torch.log(1 + sum(others)) / b if others else want  # type: ignore[arg-type]
        want = want + weight * (anchor[i].square().sum() + positive[i].square().sum()) / (2 * b)
    got = n_pair_loss(anchor, positive, norm_weight=weight)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


def test_where_all_rows_are_equal_it_is_the_logarithm_of_their_number() -> None:
    equal = rows(1, 4, 0).expand(7, 4)
    assert n_pair_loss(equal, equal).item() == pytest.approx(math.log(7), rel=1e-12)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        n_pair_loss(torch.ones(3, 2), torch.ones(4, 2), norm_weight=1.0)
