"""`margin_loss` and `logistic_loss` against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import logistic_loss, margin_loss, siglip_loss


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def same_of(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 4), st.booleans())
def test_margin_is_the_formula(b: int, d: int, seed: int, margin: float, half: bool) -> None:
    inputs = [rows(b, d, seed), rows(b, d, seed + 1)]
    same = same_of(b, seed)
    losses = []
    for x, y, alike in zip(*inputs, same.tolist(), strict=True):
        distance = (x - y).square().sum().sqrt()
        losses.append(distance**2 if alike else torch.clamp(margin - distance, min=0) ** 2)
    want = sum(losses) / b / (2 if half else 1)
    got = margin_loss(*inputs, same, margin=margin, half=half)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


def test_equal_rows_of_different_pairs_have_no_direction_to_part_in() -> None:
    first = rows(3, 4, 0)
    loss = margin_loss(first, first.detach(), torch.tensor([True, False, False]), margin=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 4 / 3, rel=1e-12)
    assert torch.equal(first.grad, torch.zeros_like(first))  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 60), st.floats(-30, 5))
def test_logistic_is_the_formula(b: int, d: int, seed: int, s: float, bias: float) -> None:
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (s, bias)]
    inputs = [rows(b, d, seed), rows(b, d, seed + 1), *numbers]
    same = same_of(b, seed)
    unit = [F.normalize(x, dim=1) for x in inputs[:2]]
    logits = torch.stack([(x * y).sum() * numbers[0] + numbers[1] for x, y in zip(*unit, strict=True)])
    want = F.binary_cross_entropy_with_logits(logits, same.double())
    got = logistic_loss(*unit, same, *numbers)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(got, inputs, retain_graph=True)
    for a, e in zip(found, torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


def test_over_all_pairs_it_is_siglips() -> None:
    first, second = (F.normalize(rows(5, 3, k), dim=1) for k in range(2))
    i, j = torch.arange(5).repeat_interleave(5), torch.arange(5).repeat(5)
    got = logistic_loss(first[i], second[j], i == j, 10.0, -5.0)
    want = siglip_loss(first, second, torch.tensor(10.0), torch.tensor(-5.0))
    torch.testing.assert_close(5 * got, want)


def test_a_scale_of_nothing_leaves_a_coin() -> None:
    first = rows(4, 3, 0)
    assert logistic_loss(first, first, same_of(4, 0), 0.0, 0.0).item() == pytest.approx(math.log(2), rel=1e-12)


def test_what_does_not_fit_is_named() -> None:
    a = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"first and second .*\(3, 2\) and \(4, 2\)"):
        margin_loss(a, torch.ones(4, 2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"same must be \(3,\) bool, not \(3,\) torch.int64"):
        margin_loss(a, a, torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"same must be \(3,\) bool, not \(2,\)"):
        logistic_loss(a, a, torch.ones(2, dtype=torch.bool), 1.0, 0.0)
    with pytest.raises(ValueError, match="bias must be one number"):
        logistic_loss(a, a, torch.ones(3, dtype=torch.bool), 1.0, torch.zeros(2))
