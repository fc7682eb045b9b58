"""`byol_loss` against its formula written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import byol_loss


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 99))
def test_it_is_the_formula(b: int, d: int, seed: int) -> None:
    prediction, target = rows(b, d, seed), rows(b, d, seed + 1)
    losses = []
    for q, z in zip(prediction, target, strict=True):
        losses.append(2 - 2 * (q * z.detach()).sum() / (q.square().sum() * z.detach().square().sum()).sqrt())
    want, got = sum(losses) / b, byol_loss(prediction, target)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    (found,), (wanted,) = torch.autograd.grad(got, [prediction]), torch.autograd.grad(want, [prediction])  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


def test_the_target_has_no_gradient() -> None:
    prediction, target = rows(3, 4, 0), rows(3, 4, 1)
    byol_loss(prediction, target).backward()
    assert target.grad is None
    assert prediction.grad is not None


def test_float32_keeps_a_small_loss() -> None:
    target = rows(100, 32, 0, torch.float32).detach()
    prediction = target + 1e-4 * rows(100, 32, 1, torch.float32).detach()
    wide = byol_loss(prediction.double(), target.double())
    assert wide.item() < 1e-7
    # 2 − 2 cos of float32 rows knows 2e-7 from 1 at best.
    assert byol_loss(prediction, target).item() == pytest.approx(wide.item(), rel=1e-2)


def test_a_row_of_zeros_has_a_loss_and_a_finite_gradient() -> None:
    prediction = torch.zeros(1, 3, requires_grad=True)
    loss = byol_loss(prediction, torch.ones(1, 3))
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"prediction and target .*\(3, 2\) and \(4, 2\)"):
        byol_loss(torch.ones(3, 2), torch.ones(4, 2))
