"""Word deletion on tokens: two views of a sentence that differ by more than dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.encoders.lengths import NOTHING


def delete_tokens(tokens: Tensor, p: float) -> Tensor:
    """Tokens (…, l), NOTHING where a row has ended -> the same with each left out with probability p, closed up.

    The first and the last token of a row stay: many tokenizers mark a text's ends with them, and no row gets empty.
    The draws are of torch's generator of the tokens' device.
    """
    real = tokens != NOTHING
    place = torch.arange(tokens.shape[-1], device=tokens.device)
    last = real.sum(-1, keepdim=True) - 1
    kept = real & ((torch.rand(tokens.shape, device=tokens.device) >= p) | (place == 0) | (place == last))
    order = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)
    return tokens.masked_fill(~kept, NOTHING).gather(-1, order)
