"""One tower of a pair, as it is opened from somewhere, before a head joins it with the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import Tokenizer


@dataclass(frozen=True)
class Half:
    """An image tower has a preparation, a text tower a tokenizer.

    backbone: pixels (b, 3, h, w) or tokens (b, l) -> (b, width). description: what builds it again without weights.
    """

    backbone: nn.Module
    width: int
    description: dict[str, Any]
    preparation: Preparation | None = None
    tokenizer: Tokenizer | None = None
