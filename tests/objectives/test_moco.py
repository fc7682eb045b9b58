"""`moco_loss` against its formula written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import moco_loss


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1).to(dtype).requires_grad_()


def reference(query: Tensor, key: Tensor, queue: Tensor, temperature: Tensor) -> Tensor:
    """Logits [1 + K] of each query, its own key first and label 0, one number at a time."""
    losses = []
    for q, k in zip(query, key.detach(), strict=True):
        values = torch.stack([(q * row).sum() / temperature for row in (k, *queue.detach())])
        losses.append(values.logsumexp(0) - values[0])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tile", [3, 512])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.integers(0, 9), st.integers(1, 5), st.integers(0, 99), st.floats(0.05, 2))
def test_it_is_the_formula(tile: int, b: int, k: int, d: int, seed: int, t: float) -> None:
    query, key, queue = unit(b, d, seed), unit(b, d, seed + 1), unit(k, d, seed + 2)
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    want = reference(query, key, queue, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal.objectives.tiles.HEIGHT", tile)
        patch.setattr("xmodal.objectives.tiles.WIDTH", tile)
        got = moco_loss(query, key, queue, temperature=temperature)
        found = torch.autograd.grad(got, [query, temperature])
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for a, e in zip(found, torch.autograd.grad(want, [query, temperature]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


def test_keys_and_queue_have_no_gradient_and_the_batchs_other_keys_are_no_negatives() -> None:
    query, key, queue = unit(4, 3, 0), unit(4, 3, 1), unit(6, 3, 2)
    loss = moco_loss(query, key, queue)
    loss.backward()
    assert key.grad is None
    assert queue.grad is None
    moved = key.detach().clone()
    moved[1:] = -moved[1:]
    alone = [moco_loss(query[i : i + 1], key[i : i + 1], queue) for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    torch.testing.assert_close(moco_loss(query[:1], moved[:1], queue), alone[0])


def test_where_all_rows_are_equal_all_are_as_likely() -> None:
    rows = unit(1, 5, 0).detach().expand(7, 5)
    assert moco_loss(rows[:3], rows[:3], rows).item() == pytest.approx(math.log(8), rel=1e-12)


def test_float32_keeps_what_a_small_loss_consists_of() -> None:
    query, queue = unit(50, 16, 0, torch.float32), -unit(1, 16, 0, torch.float32).detach().expand(30, 16)
    query = query.detach()[:1].expand(50, 16).clone().requires_grad_()
    loss = moco_loss(query, query.detach(), queue, temperature=0.05)
    assert loss.item() == pytest.approx(30 * math.exp(-40), rel=1e-5)
    loss.backward()
    assert query.grad is not None
    assert query.grad.abs().max().item() > 0


def test_what_does_not_fit_is_named() -> None:
    a = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"query and key .*\(3, 2\) and \(4, 2\)"):
        moco_loss(a, torch.ones(4, 2), a)
    with pytest.raises(ValueError, match=r"queue must be \(k, 2\).*\(2, 3\)"):
        moco_loss(a, a, torch.ones(2, 3))
    with pytest.raises(ValueError, match="temperature"):
        moco_loss(a, a, a, temperature=0)
