"""`nt_xent_loss` and `sup_con_loss` against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import nt_xent_loss, sup_con_loss


def unit(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).to(dtype).requires_grad_()


def reference(rows: Tensor, labels: list[int], temperature: Tensor) -> Tensor:
    """SupCon's L_out, one number at a time; NT-Xent is the case in which every label occurs twice."""
    losses = []
    for i in range(len(rows)):
        logits = {j: (rows[i] * rows[j]).sum() / temperature for j in range(len(rows)) if j != i}
        positives = [j for j in logits if labels[j] == labels[i]]
        if positives:
            total = torch.log(sum(torch.exp(v) for v in logits.values()))
            losses.append(-sum(logits[p] - total for p in positives) / len(positives))
    return sum(losses) / len(losses) if losses else rows.sum() * 0


@pytest.fixture(params=[4, 8, 1024])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.objectives.tiles.SIDE", request.param)


@pytest.mark.usefixtures("_tile")
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.floats(0.02, 2))
def test_nt_xent_is_the_formula(b: int, d: int, seed: int, t: float) -> None:
    first, second = unit(b, d, seed), unit(b, d, seed + 1)
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    inputs = [first, second, temperature]
    want = reference(torch.cat([first, second]), list(range(b)) * 2, temperature)
    got = nt_xent_loss(first, second, temperature)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("_tile")
@settings(max_examples=12, deadline=None)
@given(st.integers(2, 17), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_sup_con_is_the_formula(b: int, d: int, classes: int, seed: int) -> None:
    rows = unit(b, d, seed)
    labels = torch.randint(0, classes, (b,), generator=torch.Generator().manual_seed(seed))
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    want, got = reference(rows, labels.tolist(), temperature), sup_con_loss(rows, labels, temperature)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    if want.item():
        inputs = [rows, temperature]
        for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


def test_anchors_without_a_positive_are_left_out_and_no_anchor_is_zero() -> None:
    rows = unit(4, 3)
    assert torch.isfinite(sup_con_loss(rows, torch.tensor([0, 0, 1, 2])))
    none = sup_con_loss(rows, torch.arange(4))
    none.backward()
    assert none.item() == 0
    assert torch.equal(rows.grad, torch.zeros_like(rows))  # type: ignore[arg-type]


def test_two_views_are_two_rows_of_one_label() -> None:
    first, second = unit(6, 4), unit(6, 4, 1)
    labels = torch.arange(6).repeat(2)
    torch.testing.assert_close(nt_xent_loss(first, second, 0.2), sup_con_loss(torch.cat([first, second]), labels, 0.2))


@pytest.mark.parametrize("noise", [3.0, 1.0])
def test_float32_keeps_what_a_small_loss_consists_of(noise: float) -> None:
    first = unit(300, 64, 0, torch.float32).detach()
    second = F.normalize(first + noise * unit(300, 64, 1, torch.float32).detach(), dim=1)
    inputs = [first.requires_grad_(), second.requires_grad_()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    rows = torch.cat(wide)
    logits = rows @ rows.T / 0.02
    right = logits.gather(1, torch.arange(600).roll(300)[:, None])
    left_out = torch.eye(600, dtype=torch.bool) | torch.eye(600, dtype=torch.bool).roll(300, 1)
    want = torch.log1p((logits - right).masked_fill(left_out, -math.inf).exp().sum(1)).mean()
    got = nt_xent_loss(inputs[0], inputs[1], 0.02)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, wide), strict=True):
        assert ((a.double() - e).norm() / e.norm()).item() < 1e-5


def test_rows_whose_negatives_underflow_are_taken_again() -> None:
    # Two clusters on opposite sides: each view's negatives but one lie 200 below the reference.
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    first = F.normalize(rows + 0.01 * unit(2, 2).detach(), dim=1).float().requires_grad_()
    second = rows.float().requires_grad_()
    loss = nt_xent_loss(first, second, 0.01)
    loss.backward()
    wide = torch.cat([first, second]).detach().double()
    assert loss.item() == pytest.approx(reference(wide, [0, 1, 0, 1], torch.tensor(0.01)).item(), rel=1e-4, abs=1e-30)
    assert torch.isfinite(first.grad).all()  # type: ignore[union-attr]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        nt_xent_loss(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="temperature"):
        nt_xent_loss(torch.ones(3, 2), torch.ones(3, 2), 0.0)
    with pytest.raises(ValueError, match=r"labels.*\(4,\)"):
        sup_con_loss(torch.ones(3, 2), torch.arange(4))
