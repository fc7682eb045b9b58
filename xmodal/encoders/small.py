"""`small`: towers to train from scratch, quick on a CPU. No batch statistics, nothing pretrained; no dropout
unless asked for.

The shapes follow from a profile of two cores with bf16 matrix units (batch 512, forward and backward):
- dense 3 × 3 convolutions, channels last, run at up to 2 TFLOP/s; depthwise ones at a twentieth of that;
- pixel-unshuffle makes the first convolution dense, too (12 channels in, not 3);
- torch's fused attention took three fifths of the text tower's time over a dozen tokens, written out it is a tenth.

Activations are smooth (SiLU). With ReLU the gradient jumps where a rounding error changes a sign: after twelve steps at
a learning rate of 1e-3, weights computed in two halves were 6e-4 apart from those computed at once; with SiLU they are
5e-6 apart (tests/test_two_processes.py). It is as fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.pooling import TextPooling, pool
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower

WIDTH = 192  # of the text tower; heads of 48


class Residual(nn.Module):
    """Two 3 × 3 convolutions before which the input is normalised over all its channels and places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class SmallImageTower(nn.Module):
    """A residual network that ends in an 8 × 8 grid of 128 channels, of which each place is read by its own weights.

    Where a stroke is tells characters apart, so places are not averaged. Each doubling of the side adds a stage
    with half the channels and one block.
    """

    def __init__(self, side: int = 32, d: int = 256, channels: int = 128, blocks: int = 3) -> None:
        super().__init__()
        stages = (side // 16).bit_length() - 1
        if side != 16 << stages:
            raise ValueError(f"side must be 16 times a power of two, not {side}")
        widths = [max(32, channels >> (stages - i)) for i in range(stages + 1)]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            layers += [Residual(narrow), nn.SiLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        layers += [Residual(channels) for _ in range(blocks)]
        layers += [nn.GroupNorm(1, channels), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Linear(channels * 64, d, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # as for SiLU, nearly
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            if isinstance(module, Residual):
                module.second.weight.data.mul_(0.2)  # blocks begin near the identity
        self.layers.to(memory_format=torch.channels_last)
        self.checkpointing = False

    def set_grad_checkpointing(self, on: bool = True) -> None:
        self.checkpointing = on

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, side, side) -> (b, d)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = _run(layer, x, checkpointing=self.checkpointing and isinstance(layer, Residual))
        return self.projection(x.flatten(1))


class Attention(nn.Module):
    """Multi-head self-attention without a key bias.

    The softmax doesn't see a key bias, so its gradient is rounding noise that AdamW would turn into whole steps.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = _dropout(dropout)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: (b, l, width); bias: (b, 1, 1, l), −inf in effect at padding."""
        b, length, width = x.shape
        query, key, value = (
            layer(x).view(b, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        logits = (query @ key.mT).to(bias.dtype) * (width // self.heads) ** -0.5 + bias
        mixed = self.dropout(logits.softmax(-1)).to(value.dtype) @ value
        return self.out(mixed.transpose(1, 2).reshape(b, length, width))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class SmallTextTower(nn.Module):
    """A transformer over pieces; one row is made of the last layer's places and projected.

    dropout: of the embeddings, of attention's weights and of what each layer adds, as in BERT.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int = 256,
        width: int = WIDTH,
        layers: int = 2,
        length: int = 32,
        dropout: float = 0.0,
        pooling: TextPooling = "mean",
    ) -> None:
        super().__init__()
        self.pooling: TextPooling = pooling
        self.pieces = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.dropout = _dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, width // 48, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, d, bias=False)
        nn.init.normal_(self.pieces.weight, std=0.02)
        self.checkpointing = False

    def set_grad_checkpointing(self, on: bool = True) -> None:
        self.checkpointing = on

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, l) long, NOTHING where a row has ended -> (b, d)."""
        x = self.dropout(self.pieces(tokens.clamp(min=0)) + self.places[: tokens.shape[1]])  # (b, l, width)
        real = tokens != NOTHING  # (b, l)
        bias = torch.zeros(real.shape, dtype=x.dtype, device=x.device).masked_fill(~real, -1e9)[:, None, None, :]
        for layer in self.layers:
            x = _run(layer, x, bias, checkpointing=self.checkpointing)
        return self.projection(pool(self.norm(x), real, self.pooling))


def small_towers(tokenizer: PiecesTokenizer, side: int = 32, d: int = 256) -> TwoTower:
    """Fresh towers for pictures of `side` pixels and the tokenizer's pieces; torch's random state makes the weights."""
    return TwoTower(
        SmallImageTower(side, d),
        SmallTextTower(len(tokenizer), d, length=tokenizer.length),
        preparation=Preparation(side, side, resize="squash"),
        tokenizer=tokenizer,
        description={"kind": "small", "side": side, "d": d, "length": tokenizer.length},
    )


def _dropout(p: float) -> nn.Module:
    return nn.Dropout(p) if p else nn.Identity()  # torch draws a mask even where nothing is dropped


def _run(layer: nn.Module, *inputs: Any, checkpointing: bool) -> Tensor:
    if checkpointing and torch.is_grad_enabled():
        from torch.utils.checkpoint import checkpoint

        return checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return layer(*inputs)
