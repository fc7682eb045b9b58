"""The pairwise sigmoid loss, exact over processes, with positives by id.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), equation 1. As in big_vision's
siglip.py the sum over all pairs is divided by the number of images, not of pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import distributed
from xmodal.objectives import epilogue
from xmodal.objectives.arguments import check_two_towers, wide
from xmodal.objectives.pairs import Pairs, dots, same_ids
from xmodal.objectives.tiles import Tiling, accumulator, add_product, logits


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    image_id: Tensor | None = None,
    text_id: Tensor | None = None,
) -> Tensor:
    """−(1/B) Σ_ij log σ(z_ij (scale · x_i · y_j + bias)), z = 1 where i and j belong together and −1 elsewhere.

    image, text: (b, d) unit; b may differ between processes. scale, bias: (), learnable; the paper begins at 10, −10.
    image_id, text_id: (b,) long; pairs of equal ids, on any process, are positives as the diagonal is.

    Loss and gradients come from one pass over tiles (6N²D operations); nothing N × N is kept. Returns () float32, or
    float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    check_two_towers(image, text, scale, image_id, text_id)
    if bias.numel() != 1:
        raise ValueError(f"bias must be one number, not {tuple(bias.shape)}")
    with torch.autocast(image.device.type, enabled=False):
        pairs = same_ids(image_id, text_id, distributed.rows(len(image)), image.device)
        loss = _Sigmoid.apply(wide(image), wide(text), wide(scale), wide(bias), pairs)
    return loss  # pyright: ignore[reportReturnType]


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
        wanted = any(ctx.needs_input_grad[:4])
        spread = distributed.rows(len(text))
        every = distributed.all_gather(text, spread)  # (B, d)
        s, b = scale.item(), bias.item()
        positive = dots(image, every, pairs.row, pairs.column) * s + b  # (p,)
        loss = F.softplus(-positive, threshold=40).sum()
        to_image, to_text = (accumulator(rows) if wanted else rows for rows in (image, every))
        at_pairs = -(-positive).sigmoid()  # d loss / d logit
        to_bias = at_pairs.sum()
        at_pairs = at_pairs.to(to_image.dtype)
        tiling = Tiling([(range(len(image)), range(len(every)))], pairs)
        buffer = tiling.buffer(image)
        for tile in tiling:
            values = tile.put(logits(image[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            values, losses, slopes = epilogue.sigmoid_gradient(values, b, image.dtype)
            loss += losses
            if wanted:
                to_bias += slopes
                tile.put(values, at_pairs)
                add_product(to_image[tile.rows], values, every[tile.columns])
                add_product(to_text[tile.columns], values.T, image[tile.rows])
        loss = loss / len(every)
        distributed.all_reduce(loss)
        if wanted:
            to_scale = dots(image, to_image).sum()
            to_text = distributed.reduce_scatter(to_text, spread)
            found = (to_image.mul_(s), to_text.mul_(s), to_scale, to_bias)
            dtypes = (image.dtype, text.dtype, scale.dtype, bias.dtype)
            ctx.save_for_backward(*(f.div_(len(every)).to(t) for f, t in zip(found, dtypes, strict=True)))
        return loss.to(torch.promote_types(image.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if gradients[0].item() == 1:  # as a loss usually has it: no copies
            return *ctx.saved_tensors, None
        return *(saved * gradients[0].to(saved.dtype) for saved in ctx.saved_tensors), None
