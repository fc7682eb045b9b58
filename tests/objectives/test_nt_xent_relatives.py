"""`hard_nt_xent_loss` and `dcl_loss` against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import dcl_loss, hard_nt_xent_loss, nt_xent_loss


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).to(dtype).requires_grad_()


def views(first: Tensor, second: Tensor, temperature: Tensor) -> list[tuple[Tensor, Tensor]]:
    """exp of the positive's logit, and of the negatives', of each of the 2B rows."""
    b, z = len(first), torch.cat([first, second])
    found = []
    for i in range(2 * b):
        others = [j for j in range(2 * b) if j % b != i % b]
        logit = {j: (z[i] * z[j]).sum() / temperature for j in (*others, (i + b) % (2 * b))}
        found.append((logit[(i + b) % (2 * b)].exp(), torch.stack([logit[j] for j in others]).exp()))
    return found


def hard(first: Tensor, second: Tensor, temperature: Tensor, debias: float, hardness: float) -> Tensor:
    """As joshr17/HCL has it, in exponentials."""
    losses = []
    for positive, negative in views(first, second, temperature):
        n = len(negative)
        importance = (hardness * negative.log()).exp()
        weighed = (importance * negative).sum() / importance.mean()
        g = (-debias * n * positive + weighed) / (1 - debias)
        g = torch.maximum(g, n * (-1 / temperature).exp())
        losses.append(-(positive / (positive + g)).log())
    return sum(losses) / len(losses)


def decoupled(first: Tensor, second: Tensor, temperature: Tensor, sigma: float | None) -> Tensor:
    b = len(first)
    weights = torch.ones(b, dtype=torch.float64)
    if sigma is not None:
        agreement = torch.stack([((x * y).sum() / sigma).exp() for x, y in zip(first, second, strict=True)]).detach()
        weights = 2 - agreement / agreement.mean()
    both = views(first, second, temperature)
    return sum(n.sum().log() - weights[i % b] * p.log() for i, (p, n) in enumerate(both)) / len(both)


@pytest.fixture(params=[4, 512])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.objectives.tiles.HEIGHT", request.param)
    monkeypatch.setattr("xmodal.objectives.tiles.WIDTH", request.param)


def compare(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("_tile")
@settings(max_examples=20, deadline=None)
@given(
    # In one dimension all negatives may be opposite: G is the least that it can be, and has two gradients.
    *(st.integers(2, 7), st.integers(2, 5), st.integers(0, 99), st.floats(0.1, 2)),
    *(st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
)
def test_hard_is_the_formula(b: int, d: int, seed: int, t: float, debias: float, hardness: float) -> None:
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    inputs = [unit(b, d, seed), unit(b, d, seed + 1), temperature]
    got = hard_nt_xent_loss(inputs[0], inputs[1], temperature=temperature, debias=debias, hardness=hardness)
    compare(got, hard(*inputs, debias, hardness), inputs)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_tile")
@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 2), st.sampled_from([None, 0.5, 2.0]))
def test_dcl_is_the_formula(b: int, d: int, seed: int, t: float, sigma: float | None) -> None:
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    inputs = [unit(b, d, seed), unit(b, d, seed + 1), temperature]
    got = dcl_loss(inputs[0], inputs[1], temperature=temperature, sigma=sigma)
    compare(got, decoupled(*inputs, sigma), inputs)  # type: ignore[arg-type]


def test_with_neither_hardness_nor_bias_it_is_nt_xent() -> None:
    inputs = [unit(9, 4, 0), unit(9, 4, 1)]
    got = hard_nt_xent_loss(*inputs, temperature=0.2, debias=0, hardness=0)
    compare(got, nt_xent_loss(*inputs, 0.2), inputs)


def test_where_negatives_are_no_more_than_expected_false_ones_the_least_is_taken() -> None:
    # Negatives opposite to the anchor, and half of them taken for false: less than nothing would be left.
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = hard_nt_xent_loss(first, first.detach(), temperature=0.5, debias=0.5, hardness=0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-2) / math.exp(2)), rel=1e-12)
    assert first.grad is not None
    assert first.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_where_all_rows_are_equal(temperature: float) -> None:
    rows = unit(1, 4, 0).detach().expand(8, 4)
    hard_one = hard_nt_xent_loss(rows, rows, temperature=temperature)
    assert hard_one.item() == pytest.approx(math.log(15), rel=1e-9)
    assert dcl_loss(rows, rows, temperature=temperature).item() == pytest.approx(math.log(14), rel=1e-9)


@pytest.mark.parametrize("loss", [hard_nt_xent_loss, dcl_loss])
def test_a_picture_alone_has_nothing_to_learn(loss) -> None:  # type: ignore[no-untyped-def]
    first = unit(1, 4, 0)
    value = loss(first, unit(1, 4, 1))
    value.backward()
    assert value.item() == 0
    assert torch.equal(first.grad, torch.zeros_like(first))  # type: ignore[arg-type]


def test_float32_at_a_low_temperature() -> None:
    first = unit(60, 16, 0, torch.float32).detach()
    second = F.normalize(first + unit(60, 16, 1, torch.float32).detach(), dim=1)
    for loss in (hard_nt_xent_loss, dcl_loss):
        single = [x.clone().requires_grad_() for x in (first, second)]
        double = [x.double().requires_grad_() for x in (first, second)]
        got, want = loss(*single, temperature=0.02), loss(*double, temperature=0.02)
        assert got.item() == pytest.approx(want.item(), rel=1e-5)
        for a, e in zip(torch.autograd.grad(got, single), torch.autograd.grad(want, double), strict=True):
            assert ((a.double() - e).norm() / e.norm()).item() < 1e-5


def test_what_does_not_fit_is_named() -> None:
    a = torch.ones(3, 2)
    for loss in (hard_nt_xent_loss, dcl_loss):
        with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
            loss(a, torch.ones(4, 2))
        with pytest.raises(ValueError, match="temperature"):
            loss(a, a, temperature=0)
    for wrong in ({"debias": 1.0}, {"hardness": -1.0}):
        with pytest.raises(ValueError, match=r"debias must be in \[0, 1\) and hardness at least 0"):
            hard_nt_xent_loss(a, a, **wrong)
