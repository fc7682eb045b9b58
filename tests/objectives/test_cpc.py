"""`cpc_loss` against its formula written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import cpc_loss


def normal(*shape: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def reference(context: Tensor, future: Tensor, transforms: Tensor) -> Tensor:
    """−log softmax over candidates z of zᵀ W_k c, one number at a time."""
    b, steps, _ = future.shape
    losses = []
    for k in range(steps):
        for i in range(b):
            f = [(future[j, k] @ transforms[k] @ context[i]).exp() for j in range(b)]
            losses.append(-(f[i] / sum(f)).log())
    return sum(losses) / len(losses)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_it_is_the_formula(b: int, steps: int, z: int, c: int, seed: int) -> None:
    inputs = [normal(b, c, seed=seed), normal(b, steps, z, seed=seed + 1), normal(steps, z, c, seed=seed + 2)]
    want, got = reference(*inputs), cpc_loss(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


def test_the_softmax_is_over_candidates_not_over_contexts() -> None:
    # One candidate that every context likes: each is wrong about it but one; no candidate has to choose a context.
    context = torch.ones(3, 1, dtype=torch.float64)
    future = torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64).view(3, 1, 1)
    over_candidates = cpc_loss(context, future, torch.ones(1, 1, 1, dtype=torch.float64)).item()
    assert over_candidates == pytest.approx(6.0, abs=0.01)
    over_contexts = math.log(3)
    assert abs(over_candidates - over_contexts) > 1


def test_each_step_has_its_own_transform() -> None:
    context, future, transforms = normal(4, 3, seed=0), normal(4, 2, 5, seed=1), normal(2, 5, 3, seed=2)
    steps = [cpc_loss(context, future[:, k : k + 1], transforms[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(cpc_loss(context, future, transforms), torch.stack(steps).mean())
    assert cpc_loss(context, future, transforms.flip(0)) != cpc_loss(context, future, transforms)


def test_where_all_rows_are_equal_it_is_the_logarithm_of_their_number() -> None:
    context, future = normal(1, 3, seed=0).expand(6, 3), normal(1, 2, 5, seed=1).expand(6, 2, 5)
    assert cpc_loss(context, future, normal(2, 5, 3, seed=2)).item() == pytest.approx(math.log(6), rel=1e-12)


def test_what_does_not_fit_is_named() -> None:
    context, future, transforms = torch.ones(4, 3), torch.ones(4, 2, 5), torch.ones(2, 5, 3)
    for wrong in (
        (context[:3], future, transforms),
        (context, future, transforms[:1]),
        (context, future, transforms.transpose(1, 2)),
        (context, future[:, :0], transforms[:0]),
    ):
        with pytest.raises(ValueError, match=r"\(b, c\), \(b, k, z\) and \(k, z, c\)"):
            cpc_loss(*wrong)
