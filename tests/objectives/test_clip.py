"""`clip_loss` against the formula written out in float64, and against open_clip's own class."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import clip_loss, info_nce_floor


def rows(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def reference(
    image: Tensor, text: Tensor, scale: Tensor, image_id: list[int], text_id: list[int], mask: bool
) -> Tensor:
    """loss_i = lse_i − mean over P(i) of l_ip, both directions, one number at a time."""
    n = len(image)
    losses = []
    for first, second in ((image, text), (text, image)):
        for i in range(n):
            positives = [j for j in range(n) if j == i or image_id[j] == image_id[i] or text_id[j] == text_id[i]]
            logits = {j: scale * (first[i] * second[j]).sum() for j in range(n)}
            if mask:
                logits = {j: v for j, v in logits.items() if j == i or j not in positives}
                positives = [i]
            total = torch.log(sum(torch.exp(v) for v in logits.values()))
            losses.append(total - sum(logits[j] for j in positives) / len(positives))
    return sum(losses) / len(losses)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99), st.booleans(), st.floats(0.5, 100))
def test_value_and_gradients_are_the_formulas(n: int, d: int, seed: int, mask: bool, s: float) -> None:
    image, text = rows(n, d, seed)
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    g = torch.Generator().manual_seed(seed)
    image_id, text_id = (torch.randint(0, 4, (n,), generator=g) for _ in range(2))
    inputs = [image, text, scale]
    want = reference(image, text, scale, image_id.tolist(), text_id.tolist(), mask)
    positives = "mask" if mask else "uniform"
    got = clip_loss(image, text, scale, image_id=image_id, text_id=text_id, positives=positives)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_without_ids_it_is_open_clips_loss(scale: float) -> None:
    from open_clip import ClipLoss

    image, text = (t.detach().float().requires_grad_() for t in rows(33, 16))
    factor = torch.tensor(scale, requires_grad=True)
    inputs = [image, text, factor]
    ours, theirs = clip_loss(image, text, factor), ClipLoss()(image, text, factor)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_ids_that_are_all_different_change_nothing() -> None:
    image, text = rows(9, 4)
    scale, ids = torch.tensor(20.0), torch.arange(9)
    for positives in ("uniform", "mask"):
        with_ids = clip_loss(image, text, scale, image_id=ids, text_id=ids, positives=positives)  # type: ignore[arg-type]
        assert torch.equal(with_ids, clip_loss(image, text, scale))


def test_the_floor_is_the_least_value() -> None:
    # Two images with two captions each, embedded as well as can be: the loss is the floor, ln 2.
    rows = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)
    ids = torch.tensor([5, 5, 6, 6])
    loss = clip_loss(rows, rows, torch.tensor(100.0), image_id=ids)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert info_nce_floor(ids, None).item() == pytest.approx(math.log(2))
    assert info_nce_floor(None, None).item() == 0


def test_half_precision_rows_are_compared_in_float32() -> None:
    image, text = rows(16, 8)
    exact = clip_loss(image, text, torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        half = clip_loss(image.float(), text.float(), torch.tensor(100.0))
        low = clip_loss(image.bfloat16(), text.bfloat16(), torch.tensor(100.0))
    assert half.dtype == low.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": torch.ones(3, 4)}, ["image", "(4, 4)", "(3, 4)"]),
        ({"text": torch.ones(4, 5)}, ["(4, 4)", "(4, 5)"]),
        ({"scale": torch.tensor(-1.0)}, ["scale", "-1"]),
        ({"image_id": torch.arange(3)}, ["image_id", "(4,)", "(3,)"]),
        ({"text_id": torch.arange(5)}, ["text_id", "(5,)"]),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor], words: list[str]) -> None:
    arguments = {"image": torch.ones(4, 4), "text": torch.ones(4, 4), "scale": torch.tensor(10.0), **change}
    with pytest.raises(ValueError, match="must") as error:
        clip_loss(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def accurate(image: Tensor, text: Tensor, scale: Tensor) -> list[Tensor]:
    """Loss and gradients in float64, of pairs on the diagonal, as log(1 + negatives / positive)."""
    inputs = [t.detach().double().requires_grad_() for t in (image, text, scale)]
    logits = inputs[2] * (inputs[0] @ inputs[1].T)
    right = logits.diagonal()
    self = torch.eye(len(logits), dtype=torch.bool)
    rows = (logits - right[:, None]).masked_fill(self, -math.inf).exp().sum(1)
    columns = (logits - right[None, :]).masked_fill(self, -math.inf).exp().sum(0)
    loss = (torch.log1p(rows).mean() + torch.log1p(columns).mean()) / 2
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def ours(image: Tensor, text: Tensor, scale: Tensor, keep_bytes: int = 0) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (image, text, scale)]
    loss = clip_loss(inputs[0], inputs[1], inputs[2], keep_bytes=keep_bytes)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def pairs(kind: str, n: int = 512, d: int = 64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    image, noise = (F.normalize(torch.randn(n, d, generator=g), dim=1) for _ in range(2))
    if kind == "opposite":
        return image, -image
    return image, noise if kind == "random" else F.normalize(image + float(kind) * noise, dim=1)


@pytest.mark.parametrize(
    ("kind", "scale", "bound"),
    [("random", 14.0, 1e-6), ("random", 100.0, 2e-6), ("3", 100.0, 3e-6), ("1", 50.0, 1e-4), ("opposite", 100.0, 2e-6)],
)
def test_float32_keeps_what_a_small_loss_consists_of(kind: str, scale: float, bound: float) -> None:
    image, text = pairs(kind)
    for got, want in zip(
        ours(image, text, torch.tensor(scale)), accurate(image, text, torch.tensor(scale)), strict=True
    ):
        assert ((got.double() - want).norm() / want.norm()).item() < bound


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 70])
def test_tiles_of_any_size_and_kept_exponentials_change_nothing(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = (rows[:n] for rows in pairs("3"))
    monkeypatch.setattr("xmodal.objectives.tiles.HEIGHT", 32)
    monkeypatch.setattr("xmodal.objectives.tiles.WIDTH", 16)
    small = ours(image, text, torch.tensor(20.0))
    for got, want in zip(small, accurate(image, text, torch.tensor(20.0)), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    for budget in (5000, 10**9):
        kept = ours(image, text, torch.tensor(20.0), budget)
        assert all(torch.equal(a, b) for a, b in zip(small, kept, strict=True))


@pytest.mark.parametrize("apart", [1.0, 40.0, 1e4])
def test_rows_that_are_not_unit_neither_overflow_nor_vanish(apart: float) -> None:
    """Sums that underflow beside the largest logit are taken again, row by row and column by column."""
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(24, 8, generator=g) for _ in range(2))
    image[:3] *= apart
    text[5] *= apart
    text[9] = -apart * image[0]
    inputs = [image, text, torch.tensor(2.0)]
    wide = [t.double().requires_grad_() for t in inputs]
    logits = wide[2] * wide[0] @ wide[1].T
    labels = torch.arange(24)
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    got = ours(image, text, inputs[2])
    torch.testing.assert_close(got[0].double(), want.detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(got[1:], torch.autograd.grad(want, wide), strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_all_rows_equal_is_ln_n() -> None:
    rows = F.normalize(torch.ones(37, 5), dim=1)
    assert clip_loss(rows, rows, torch.tensor(30.0)).item() == pytest.approx(math.log(37), rel=1e-6)


def test_twice_the_same_is_the_same_to_the_bit() -> None:
    image, text = pairs("3")
    first, second = (ours(image, text, torch.tensor(60.0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
