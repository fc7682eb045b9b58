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
from xmodal.objectives.info_nce import check_rows, same_places
from xmodal.objectives.tiles import Pairs, tiles


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
    check_rows(image, text, scale, image_id, text_id)
    if bias.numel() != 1:
        raise ValueError(f"bias must be one number, not {tuple(bias.shape)}")
    with torch.autocast(image.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        row, column = same_places(len(image), image_id, text_id, image.device)
        pairs = Pairs(row, column, torch.ones_like(row, dtype=torch.bool))
        loss = _Sigmoid.apply(image.to(wide), text.to(wide), scale.to(wide), bias.to(wide), pairs)
    return loss  # pyright: ignore[reportReturnType]


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
        wanted = any(ctx.needs_input_grad[:4])
        sizes = distributed.sizes(len(text))
        every = distributed.all_gather(text, sizes)  # (B, d)
        logits = pairs.dots(image, every) * scale.double() + bias.double()  # of positives, (p,)
        loss = F.softplus(-logits, threshold=40).sum()
        at_pairs = -(-logits).sigmoid()  # d loss / d logit
        to_bias = at_pairs.sum()
        to_image, to_text = (torch.zeros_like(rows) if wanted else rows for rows in (image, every))
        at_pairs = at_pairs.to(image.dtype)
        for tile in tiles(image, every, scale, pairs):
            values = tile.logits().add_(bias)
            tile.put(float("-inf"))
            loss += F.softplus(values, threshold=40).sum(dtype=torch.float64)
            if wanted:
                values.sigmoid_()
                to_bias += values.sum(dtype=torch.float64)
                tile.put(at_pairs)
                tile.add_gradients(image, to_image, to_text)
        loss = loss / len(every)
        distributed.all_reduce(loss)
        if wanted:
            to_scale = (image * to_image).sum(dtype=torch.float64).to(scale.dtype)
            to_text = distributed.reduce_scatter(to_text, sizes)
            ctx.save_for_backward(to_image.mul_(scale), to_text.mul_(scale), to_scale, to_bias.to(bias.dtype))
            ctx.rows = len(every)
        return loss.to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight = gradients[0] / ctx.rows
        return *(saved * weight for saved in ctx.saved_tensors), None
