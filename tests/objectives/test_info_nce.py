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
