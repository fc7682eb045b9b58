"""BERT without padding: all tokens of a batch are one matrix, and only attention knows where a text ends.

Linear layers, norms and activations see (tokens, width); attention goes through texts of one length together, which
need no mask. The model's own modules do the work, so weights, adapters and dropout are theirs, and gradients flow.
It is for CPUs: a GPU would launch many kernels for few texts each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.hf import TextFeatures
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.pooling import TextPooling
from xmodal.encoders.sentence_transformers import Chain

KNOWN = ("bert", "roberta", "xlm-roberta")  # layers of one build; the latter two count places from the padding's number


class Flat:
    """A tower's forward on ragged rows; see `flat`."""

    def __init__(self, model: Any, pooling: TextPooling, after: nn.Module) -> None:
        self.model, self.after = model, after
        self.pooling: TextPooling = pooling
        config = model.config
        self.heads: int = config.num_attention_heads
        self.first_place: int = 0 if config.model_type == "bert" else model.embeddings.padding_idx + 1

    def __call__(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Tokens of all texts behind each other (t,) long, and how many each has, of at least 1 -> (b, d).

        Texts of one length that stand together are attended to together: sort them.
        """
        model = self.model
        groups = [(len(list(same)), length) for length, same in groupby(lengths)]  # (texts, tokens of each)
        place = torch.cat([torch.arange(length, device=tokens.device).repeat(n) for n, length in groups])
        places = self.first_place + place
        x = model.embeddings(input_ids=tokens[None], position_ids=places[None])[0]  # (t, width)
        for layer in model.encoder.layer:
            own = layer.attention.self
            each = [part(x).unflatten(-1, (self.heads, -1)) for part in (own.query, own.key, own.value)]
            dropout = own.dropout.p if own.training else 0.0
            x = layer.attention.output(_attention(each, groups, dropout).flatten(1), x)
            x = layer.output(layer.intermediate(x), x)
        return self.after(_pool(x, groups, self.pooling))

    def padded(self, tokens: Tensor) -> Tensor:
        """Rows (b, l) that end in NOTHING, each with a token -> (b, d)."""
        lengths = (tokens != NOTHING).sum(1)
        order = lengths.argsort(stable=True)
        tokens = tokens[order]
        found = self(tokens[tokens != NOTHING], lengths[order].tolist())
        return found[order.argsort()]


def flat(tower: nn.Module) -> Flat | None:
    """The same forward for ragged rows; None for a tower that isn't one of those known, to the last setting."""
    after: nn.Module = nn.Identity()
    if isinstance(tower, Chain):
        tower, after = tower.features, tower.dense
    if not isinstance(tower, TextFeatures):
        return None
    model, config = tower.model, tower.model.config
    plain = (
        config.model_type in KNOWN
        and not (config.is_decoder or config.add_cross_attention)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and hasattr(model, "embeddings")  # False where adapters wrap the whole model
        and hasattr(model, "encoder")
        and not any(getattr(layer, "gradient_checkpointing", False) for layer in model.encoder.layer)
    )
    return Flat(model, tower.pooling, after) if plain else None


def _attention(each: Sequence[Tensor], groups: Sequence[tuple[int, int]], dropout: float) -> Tensor:
    """Query, key and value, (t, heads, width) -> (t, heads, width)."""
    found = []
    sizes = [n * length for n, length in groups]
    for (n, length), *parts in zip(groups, *(part.split(sizes) for part in each), strict=True):
        query, key, value = (part.unflatten(0, (n, length)).transpose(1, 2) for part in parts)  # (n, heads, l, width)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        found.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


def _pool(x: Tensor, groups: Sequence[tuple[int, int]], pooling: TextPooling) -> Tensor:
    """(t, width) -> (b, width)."""
    found = []
    for (n, length), part in zip(groups, x.split([n * length for n, length in groups]), strict=True):
        places = part.unflatten(0, (n, length))
        if pooling in ("cls", "last"):
            found.append(places[:, 0 if pooling == "cls" else -1])
        else:
            found.append(places.amax(1) if pooling == "max" else places.mean(1))
    return torch.cat(found)
