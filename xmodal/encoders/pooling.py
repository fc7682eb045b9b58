"""From what a text tower says of each token to one row for the text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TextPooling = Literal["mean", "cls", "last", "max"]


def pool(places: Tensor, real: Tensor, pooling: TextPooling) -> Tensor:
    """(b, l, width) and which places are tokens, (b, l) bool, first to last -> (b, width).

    cls is the first place, last the last that is a token. A row without any token gives zeros where it is a mean.
    """
    if pooling == "cls":
        return places[:, 0]
    if pooling == "last":
        return places[torch.arange(len(places), device=places.device), real.sum(1) - 1]
    if pooling == "max":
        return places.masked_fill(~real[..., None], float("-inf")).amax(1)
    return (places * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
