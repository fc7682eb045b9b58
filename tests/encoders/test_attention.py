"""torch's multi-head attention taken apart: the same outputs and gradients, and itself again afterwards."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from xmodal.encoders.attention import OpenAttention, close_attention, open_attention

B, L, WIDTH, HEADS = 3, 5, 12, 4


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in module.parameters():  # biases begin at zero
            p.add_(torch.randn_like(p) * 0.1)
    return module


def masks() -> dict[str, Tensor | None]:
    closed = torch.ones(L, L, dtype=torch.bool).triu(1)
    added = torch.zeros(L, L, dtype=torch.float64).masked_fill(closed, -torch.inf)
    each = torch.randn(B * HEADS, L, L, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    single = torch.zeros(L, L).masked_fill(closed, -torch.inf)
    return {"none": None, "added": added, "bool": closed, "each": each, "each bool": each > 1, "float32": single}


def outputs(module: nn.Module, *inputs: Tensor, mask: Tensor | None) -> list[Tensor]:
    """What comes out and the gradient of everything that goes in."""
    copies = {id(x): x.clone().requires_grad_() for x in inputs}  # the same tensor twice stays the same one
    result = module(*(copies[id(x)] for x in inputs), need_weights=False, attn_mask=mask)[0]
    pull = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(2))
    wanted = [*copies.values(), *module.parameters()]
    return [result.detach(), *torch.autograd.grad((result * pull).sum(), wanted)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", masks())
def test_outputs_and_gradients_are_torchs(name: str, batch_first: bool, training: bool) -> None:
    theirs = attention(batch_first=batch_first).train(training)
    ours = OpenAttention(theirs)
    ours.train(training)
    mask = masks()[name]
    own = mask if mask is None or mask.dtype != torch.float32 else mask.double()  # which torch asks for
    x = torch.randn(*((B, L) if batch_first else (L, B)), WIDTH, dtype=torch.float64)
    y = torch.randn_like(x)
    for inputs in ((x, x, x), (x, y, y), (x, y, x)):
        expected, found = outputs(theirs, *inputs, mask=own), outputs(ours, *inputs, mask=mask)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        if not training:  # where torch takes its fused kernel
            with torch.no_grad():
                fused = theirs(*inputs, need_weights=False, attn_mask=own)[0]
            torch.testing.assert_close(found[0], fused, rtol=0, atol=1e-12)


def test_without_biases() -> None:
    theirs = attention(bias=False, batch_first=True)
    ours = OpenAttention(theirs)
    x = torch.randn(B, L, WIDTH, dtype=torch.float64)
    for a, b in zip(outputs(ours, x, x, x, mask=None), outputs(theirs, x, x, x, mask=None), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert ours.closed().in_proj_bias is None


def test_dropout_is_of_training_alone() -> None:
    ours = OpenAttention(attention(dropout=0.5, batch_first=True))
    x = torch.randn(B, L, WIDTH, dtype=torch.float64)
    ours.train()
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    assert ours.closed().dropout == 0.5


def test_what_it_cannot_do_is_refused_and_left_alone() -> None:
    x = torch.randn(B, L, WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="key_padding_mask"):
        OpenAttention(attention())(x, x, x, key_padding_mask=torch.zeros(B, L, dtype=torch.bool))
    with pytest.raises(ValueError, match="width must be 12, not 8"):
        OpenAttention(attention())(x[..., :8], x[..., :8], x[..., :8])
    for options in ({"kdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        module = nn.ModuleList([attention(**options)])
        open_attention(module)
        assert isinstance(module[0], nn.MultiheadAttention)


IMAGE = open_clip.transformer.VisionTransformer(32, 16, 64, 2, 2, 4.0, output_dim=24), torch.randn(2, 3, 32, 32)
TEXT = open_clip.transformer.TextTransformer(12, 60, 64, 2, 2, output_dim=24), torch.randint(1, 60, (2, 12))


@pytest.mark.parametrize(("tower", "x"), [IMAGE, TEXT], ids=["image", "text, which sees no later token"])
def test_a_model_of_open_clip_opened_and_closed_is_itself(tower: nn.Module, x: Tensor) -> None:
    tower.eval()
    before = {name: (p, p.clone()) for name, p in tower.named_parameters()}
    names = list(tower.state_dict())
    with torch.no_grad():
        expected = tower(x)
        open_attention(tower)
        assert sum(isinstance(m, OpenAttention) for m in tower.modules()) == 2
        assert not any(isinstance(m, nn.MultiheadAttention) for m in tower.modules())
        torch.testing.assert_close(tower(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(tower.train()(x), expected, rtol=0, atol=1e-5)
        tower.eval()
        close_attention(tower)
    after = dict(tower.named_parameters())
    assert list(after) == list(before)
    assert list(tower.state_dict()) == names
    assert all(after[name] is p and torch.equal(p, value) for name, (p, value) in before.items())
    assert sum(isinstance(m, nn.MultiheadAttention) for m in tower.modules()) == 2
    with torch.no_grad():
        assert torch.equal(tower(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_whether_it_trains_is_kept(training: bool) -> None:
    module = nn.ModuleList([attention(dropout=0.5)]).train(training)
    options = dict(vars(module[0]))
    open_attention(module)
    assert isinstance(module[0], OpenAttention)
    assert all(m.training is training for m in module.modules())
    close_attention(module)
    assert all(m.training is training for m in module.modules())
    for name in ("embed_dim", "num_heads", "head_dim", "dropout", "batch_first", "kdim", "vdim", "add_zero_attn"):
        assert getattr(module[0], name) == options[name], name


def test_the_same_draws_of_dropout_are_torchs() -> None:
    theirs = attention(dropout=0.5, batch_first=True).train()
    ours = OpenAttention(theirs).train()
    x = torch.randn(B, L, WIDTH, dtype=torch.float64)
    torch.manual_seed(4)
    expected = theirs(x, x, x, need_weights=False)[0]
    torch.manual_seed(4)
    torch.testing.assert_close(ours(x, x, x)[0], expected, rtol=0, atol=1e-12)
