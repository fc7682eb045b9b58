"""`distill_loss` against its formula written out in float64; open_clip's own class is in test_peers.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import distill_loss


def unit(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1)


def reference(
    image: Tensor, text: Tensor, scale: Tensor, teacher: tuple[Tensor, Tensor], teacher_scale: float
) -> Tensor:
    """−Σ_j p_ij log q_ij, one number at a time, of rows and of columns."""
    losses = []
    for (x, y), (a, b) in (((image, text), teacher), ((text, image), teacher[::-1])):
        for i in range(len(x)):
            q = torch.stack([torch.exp(scale * (x[i] * y[j]).sum()) for j in range(len(y))])
            p = [math.exp(teacher_scale * (a[i] * b[j]).sum().item()) for j in range(len(b))]
            losses.append(-torch.stack([p[j] / sum(p) * torch.log(q[j] / q.sum()) for j in range(len(y))]).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tile", [3, 1024])
@settings(max_examples=20, deadline=None)
@given(
    *(st.integers(1, 8), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99)),
    *(st.floats(0.5, 100), st.floats(0, 100)),
)
def test_it_is_the_formula(tile: int, b: int, d: int, e: int, seed: int, s: float, t: float) -> None:
    image, text = (unit(b, d, seed + k).requires_grad_() for k in range(2))
    teacher = unit(b, e, seed + 2).requires_grad_(), unit(b, e, seed + 3).requires_grad_()
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    inputs = [image, text, scale]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal.objectives.tiles.HEIGHT", tile)
        patch.setattr("xmodal.objectives.tiles.WIDTH", tile)
        patch.setattr("xmodal.objectives.distill.STRIP", 2 * tile)
        got = distill_loss(image, text, scale, *teacher, t)
        found = torch.autograd.grad(got, inputs, retain_graph=True)
    want = reference(image, text, scale, teacher, t)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    for a, x in zip(found, torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, x, rtol=1e-8, atol=1e-10)
    assert torch.autograd.grad(got, teacher, allow_unused=True) == (None, None)


def test_a_student_that_is_its_teacher_has_the_entropy_as_its_loss_and_no_gradient() -> None:
    image, text = (unit(40, 9, k).requires_grad_() for k in range(2))
    scale = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    logits = (scale * image @ text.T).detach()
    entropy = sum(-(x.softmax(1) * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T)) / 2
    loss = distill_loss(image, text, scale, image, text, 12.0)
    torch.testing.assert_close(loss, entropy)
    assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(loss, [image, text, scale]))


def test_a_teacher_that_is_sure_of_the_pairs_is_plain_cross_entropy() -> None:
    image, text, teacher = unit(30, 8, 0), unit(30, 8, 1), torch.eye(30, dtype=torch.float64)
    logits, labels = 9 * image @ text.T, torch.arange(30)
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    got = distill_loss(image, text, torch.tensor(9.0), teacher, teacher, 1000.0)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("noise", "scale"), [(8.0, 14.0), (1.0, 100.0)])
def test_float32_is_as_exact_as_the_whole_matrix_in_float32(noise: float, scale: float) -> None:
    rows = [unit(400, 32, k) for k in range(4)]
    rows[1], rows[3] = (F.normalize(a + noise * b, dim=1) for a, b in (rows[:2], rows[2:]))

    def naive(image: Tensor, text: Tensor, s: Tensor, a: Tensor, b: Tensor, t: float) -> Tensor:
        student, taught = s * image @ text.T, t * a @ b.T
        sums = (-(p.softmax(1) * q.log_softmax(1)).sum(1).mean() for p, q in ((taught, student), (taught.T, student.T)))
        return sum(sums, torch.zeros(())) / 2

    def step(loss: object, dtype: torch.dtype) -> list[Tensor]:
        inputs = [
            *(x.to(dtype).requires_grad_() for x in rows[:2]),
            torch.tensor(scale, dtype=dtype, requires_grad=True),
        ]
        value = loss(*inputs, *(x.to(dtype) for x in rows[2:]), 80.0)  # type: ignore[operator]
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    exact = step(naive, torch.float64)
    for got, theirs, want in zip(step(distill_loss, torch.float32), step(naive, torch.float32), exact, strict=True):
        ours, others = (((x.double() - want).norm() / want.norm()).item() for x in (got, theirs))
        assert ours < 2 * others + 1e-6


@pytest.mark.parametrize("apart", [1.0, 1e4])
def test_rows_that_are_not_unit_neither_overflow_nor_vanish(apart: float) -> None:
    image, text, a, b = (unit(24, 8, k).float() for k in range(4))
    image[:3] *= apart
    a[5] *= -apart
    image, text = image.requires_grad_(), text.requires_grad_()
    loss = distill_loss(image, text, torch.tensor(2.0), a, b, 30.0)
    wide = [x.detach().double() for x in (image, text, a, b)]
    torch.testing.assert_close(
        loss.double(), distill_loss(wide[0], wide[1], torch.tensor(2.0), wide[2], wide[3], 30.0), rtol=1e-5, atol=0
    )
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [image, text]))


def test_what_does_not_fit_is_named() -> None:
    a, t, s = torch.ones(3, 2), torch.ones(3, 5), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"image and text .*\(4, 2\)"):
        distill_loss(a, torch.ones(4, 2), s, t, t, 1.0)
    with pytest.raises(ValueError, match=r"teacher_image and teacher_text .*\(3, 6\)"):
        distill_loss(a, a, s, t, torch.ones(3, 6), 1.0)
    with pytest.raises(ValueError, match="the teacher must have 3 rows"):
        distill_loss(a, a, s, t[:2], t[:2], 1.0)
    with pytest.raises(ValueError, match="teacher_scale must be at least 0, not -1"):
        distill_loss(a, a, s, t, t, -1.0)
