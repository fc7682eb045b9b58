"""torch's multi-head attention taken apart into linear layers, and put together again.

Adapters work on linear layers. torch's module keeps its weights outside of any, and in evaluation hands them to a fused
kernel that would leave an adapter out; merging an adapter before every call and taking it out again, as peft does,
moves the frozen weights by rounding errors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OpenAttention(nn.Module):
    """What nn.MultiheadAttention computes, with its projections as linear layers; weights are not returned."""

    def __init__(self, theirs: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first, self.dropout = theirs.num_heads, theirs.batch_first, theirs.dropout
        width = theirs.embed_dim
        self.in_proj = nn.Linear(width, 3 * width, bias=theirs.in_proj_bias is not None, device="meta")
        assert theirs.in_proj_weight is not None
        self.in_proj.weight = theirs.in_proj_weight
        if theirs.in_proj_bias is not None:
            self.in_proj.bias = theirs.in_proj_bias
        self.out_proj = nn.Linear(width, width, bias=theirs.out_proj.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = theirs.out_proj.weight, theirs.out_proj.bias

    @staticmethod
    def possible(module: nn.Module) -> bool:
        """Whether a module is one that this class can stand in for."""
        return (
            isinstance(module, nn.MultiheadAttention)
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(b, l, width), or (l, b, width) unless batch_first.

        attn_mask: added to the logits or, of type bool, true where there is no way; (l, l) or (b · heads, l, l).
        Raises ValueError for a key_padding_mask; need_weights is taken as false.
        """
        if key_padding_mask is not None:
            raise ValueError("key_padding_mask is not known here; put it into attn_mask")
        if self.in_proj.weight.shape[1] != query.shape[-1]:
            raise ValueError(f"width must be {self.in_proj.weight.shape[1]}, not {query.shape[-1]}")
        same = query is key and key is value
        if same:
            q, k, v = self.in_proj(query).chunk(3, -1)
        else:
            q, k, v = (self.in_proj(x).chunk(3, -1)[i] for i, x in enumerate((query, key, value)))
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (b, heads, l, width / heads)
        if attn_mask is not None and attn_mask.ndim == 3:  # torch's form for several heads: (b · heads, l, l)
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        if attn_mask is not None:  # the kernel's bool is the opposite of torch's module's
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        mixed = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return mixed if self.batch_first else mixed.transpose(0, 1), None

    def closed(self) -> nn.MultiheadAttention:
        """torch's module again, with the weights of this one."""
        width = self.out_proj.weight.shape[0]
        with torch.device("meta"):
            theirs = nn.MultiheadAttention(
                width, self.heads, self.dropout, bias=self.in_proj.bias is not None, batch_first=self.batch_first
            )
        theirs.in_proj_weight = self.in_proj.weight  # pyright: ignore[reportAttributeAccessIssue]
        theirs.in_proj_bias = self.in_proj.bias
        theirs.out_proj.weight, theirs.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return theirs.train(self.training)


def open_attention(module: nn.Module) -> None:
    """Put OpenAttention in the place of every attention of torch's below a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if OpenAttention.possible(child):
                setattr(parent, name, OpenAttention(child).train(child.training))  # pyright: ignore[reportArgumentType]


def close_attention(module: nn.Module) -> None:
    """Undo `open_attention`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OpenAttention):
                setattr(parent, name, child.closed())
