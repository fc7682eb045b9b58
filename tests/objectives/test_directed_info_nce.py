"""`info_nce_loss` and `simcse_loss` against their formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import info_nce_loss, simcse_loss


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def reference(query: Tensor, keys: Tensor, temperature: Tensor, log_weights: dict[tuple[int, int], float]) -> Tensor:
    """−log softmax at key i, one number at a time; log_weights adds to single logits."""
    losses = []
    for i in range(len(query)):
        values = [(query[i] * k).sum() / temperature + log_weights.get((i, j), 0.0) for j, k in enumerate(keys)]
        losses.append(torch.stack(values).logsumexp(0) - values[i])
    return sum(losses) / len(losses)


@pytest.fixture(params=[4, 512])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.objectives.tiles.HEIGHT", request.param)
    monkeypatch.setattr("xmodal.objectives.tiles.WIDTH", request.param)


@pytest.mark.usefixtures("_tile")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 7), st.integers(0, 99), st.floats(0.02, 2))
def test_info_nce_is_the_formula(b: int, d: int, n: int, seed: int, t: float) -> None:
    query, key, negatives = rows(b, d, seed), rows(b, d, seed + 1), rows(n, d, seed + 2)
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    inputs = [query, key, temperature, *([negatives] if n else [])]
    want = reference(query, torch.cat([key, negatives]), temperature, {})
    got = info_nce_loss(query, key, negatives if n else None, temperature=temperature)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10 * max(1, 1 / t))


@pytest.mark.usefixtures("_tile")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.floats(-3, 3), st.booleans())
def test_simcse_is_the_formula(b: int, d: int, seed: int, weight: float, hard: bool) -> None:
    anchor, positive, negative = (F.normalize(rows(b, d, seed + k), dim=1) for k in range(3))
    temperature = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    inputs = [anchor, positive, temperature, *([negative] if hard else [])]
    keys = torch.cat([positive, negative]) if hard else positive
    want = reference(anchor, keys, temperature, {(i, b + i): weight for i in range(b)})
    got = simcse_loss(
        anchor, positive, negative if hard else None, temperature=temperature, hard_negative_weight=weight
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("_tile")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.integers(1, 4), st.floats(-3, 3), st.booleans())
def test_equal_sentences_are_positives_too(b: int, seed: int, kinds: int, weight: float, hard: bool) -> None:
    anchor, positive, negative = (F.normalize(rows(b, 4, seed + k), dim=1) for k in range(3))
    temperature = torch.tensor(0.05, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, kinds, (b,), generator=g) for _ in range(2)]
    logits = anchor @ torch.cat([positive, negative] if hard else [positive]).T / temperature
    if hard:
        logits = logits + weight * F.one_hot(b + torch.arange(b), 2 * b).double()
    same = (ids[0][:, None] == ids[0]) | (ids[1][:, None] == ids[1])
    want = (logits.logsumexp(1) - (logits[:, :b] * same).sum(1) / same.sum(1)).mean()
    more = {"temperature": temperature, "hard_negative_weight": weight, "anchor_id": ids[0], "positive_id": ids[1]}
    got = simcse_loss(anchor, positive, negative if hard else None, **more)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    inputs = [anchor, positive, *([negative] if hard else [])]
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("length", [1.0, 30.0, 1e4])
def test_raw_products_of_any_size_neither_overflow_nor_vanish(length: float) -> None:
    query, key = (length * rows(40, 8, k, torch.float32).detach() for k in range(2))
    key[3] = -key[3] * 100
    inputs = [query.requires_grad_(), key.requires_grad_()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    want = F.cross_entropy(wide[0] @ wide[1].T, torch.arange(40))
    got = info_nce_loss(inputs[0], inputs[1], temperature=1.0)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, wide), strict=True):
        assert torch.isfinite(a).all()
        # Among products of 1e8 float32 tells 8 apart: rows that two keys share shift by that much.
        bound = 1e-5 if length < 100 else 0.3
        assert ((a.double() - e).norm() / e.norm()).item() < bound


def test_float32_keeps_what_a_small_loss_consists_of() -> None:
    first = F.normalize(rows(300, 64, 0, torch.float32).detach(), dim=1)
    second = F.normalize(first + rows(300, 64, 1, torch.float32).detach() / 8, dim=1)
    inputs = [first.requires_grad_(), second.requires_grad_()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    logits = 50 * wide[0] @ wide[1].T
    others = (logits - logits.diagonal()[:, None]).masked_fill(torch.eye(300, dtype=torch.bool), -math.inf)
    want = torch.log1p(others.exp().sum(1)).mean()
    assert want < 1e-5
    got = info_nce_loss(inputs[0], inputs[1], temperature=1 / 50)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, wide), strict=True):
        assert ((a.double() - e).norm() / e.norm()).item() < 1e-5


def test_a_query_alone_has_nothing_to_learn() -> None:
    query, key = rows(1, 4, 0), rows(1, 4, 1)
    loss = info_nce_loss(query, key)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros_like(query))  # type: ignore[arg-type]


def test_what_does_not_fit_is_named() -> None:
    a = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"query and key .*\(3, 2\) and \(4, 2\)"):
        info_nce_loss(a, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"negatives must be \(n, 2\).*\(3, 5\)"):
        info_nce_loss(a, a, torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"anchor and negative .*\(2, 2\)"):
        simcse_loss(a, a, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"anchor_id must be \(3,\)"):
        simcse_loss(a, a, anchor_id=torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature"):
        simcse_loss(a, a, temperature=-1.0)
