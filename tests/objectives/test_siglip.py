"""`siglip_loss` against the formula written out in float64, and against open_clip's own class."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import siglip_loss


def inputs(
    n: int, d: int, scale: float, bias: float, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).to(dtype) for _ in range(2)]
    numbers = [torch.tensor(v, dtype=dtype) for v in (scale, bias)]
    return [t.requires_grad_() for t in (*rows, *numbers)]


def reference(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, ids: list[int]) -> Tensor:
    n = len(image)
    total = image.new_zeros(())
    for i in range(n):
        for j in range(n):
            z = 1 if i == j or ids[i] == ids[j] else -1
            total = total - torch.log(torch.sigmoid(z * (scale * (image[i] * text[j]).sum() + bias)))
    return total / n


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99), st.floats(0.5, 20), st.floats(-10, 5))
def test_value_and_gradients_are_the_formulas(n: int, d: int, seed: int, scale: float, bias: float) -> None:
    given_ = inputs(n, d, scale, bias, seed=seed)
    ids = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    want = reference(*given_, ids.tolist())
    got = siglip_loss(*given_, image_id=ids)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, given_), torch.autograd.grad(want, given_), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -12.0), (1.0, 3.0)])
def test_without_ids_it_is_open_clips_loss(scale: float, bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip.loss import SigLipLoss

    monkeypatch.setattr("xmodal.objectives.tiles.HEIGHT", 16)
    monkeypatch.setattr("xmodal.objectives.tiles.WIDTH", 8)
    given_ = inputs(45, 16, scale, bias, torch.float32)
    ours, theirs = siglip_loss(*given_), SigLipLoss()(*given_)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(3 * ours, given_), torch.autograd.grad(3 * theirs, given_), strict=True):
        torch.testing.assert_close(a, b)


def test_at_the_papers_start_it_is_about_ten() -> None:
    n = 64
    rows = torch.eye(n)
    loss = siglip_loss(rows, rows.roll(1, 0), torch.tensor(10.0), torch.tensor(-10.0))
    want = F.softplus(torch.tensor(10.0)) + (n - 2) * F.softplus(torch.tensor(-10.0)) + F.softplus(torch.tensor(0.0))
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    assert math.isclose(loss.item(), 10.7, abs_tol=0.1)


def test_half_precision_rows_are_compared_in_float32() -> None:
    given_ = inputs(16, 8, 10.0, -10.0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = siglip_loss(given_[0].bfloat16(), given_[1].bfloat16(), given_[2], given_[3])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(siglip_loss(*given_).item(), rel=1e-2)


def test_without_gradients_none_are_computed() -> None:
    given_ = [t.detach() for t in inputs(16, 8, 10.0, -10.0, torch.float32)]
    assert not siglip_loss(*given_).requires_grad


def test_what_does_not_fit_is_named() -> None:
    rows = torch.ones(4, 3)
    with pytest.raises(ValueError, match="bias"):
        siglip_loss(rows, rows, torch.tensor(1.0), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        siglip_loss(rows, torch.ones(5, 3), torch.tensor(1.0), torch.tensor(0.0))
