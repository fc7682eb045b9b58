"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the layers of both towers; peft's, on linear layers alone.

While an adapter is there, a weight W acts as W + B·A and W stays as it is, bit for bit. `merged` gives
the plain model back.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any, Literal, TypeVar

from torch import nn

from xmodal.encoders.asleep import Sleepers
from xmodal.encoders.attention import close_attention, open_attention
from xmodal.encoders.depth import depths
from xmodal.encoders.trainable import keep_statistics
from xmodal.encoders.two_tower import backbone
from xmodal.errors import InputError
from xmodal.sharding import whole

Where = Literal["attention", "all"]
M = TypeVar("M", bound=nn.Module)


def add_lora(
    towers: Sleepers,
    rank: int,
    *,
    where: Where = "attention",
    only: tuple[str, ...] = ("image", "text"),
) -> None:
    """Freeze the backbones of the towers named and put adapters on their layers' linear maps, in place.

    where: the attention's maps, or all of a layer's. Heads on top stay as they were, trainable; statistics of batches
    rest, as the weights do. Raises InputError for a tower without any such map.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    for which in only:
        tower = backbone(getattr(towers, which))
        tower.requires_grad_(False)
        open_attention(tower)
        names = _maps(tower, where)
        if not names:
            raise InputError(
                f"--lora: the {which} tower has no linear maps {'of attention ' if where == 'attention' else ''}"
                "in its layers. Unlock its last layers instead, or lock it."
            )
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a module isn't one of transformers'
            LoraModel(tower, config, "default")
        for name, p in tower.named_parameters():
            p.requires_grad_("lora_" in name)
        keep_statistics(towers, which)


def has_lora(module: nn.Module) -> bool:
    """Whether adapters are anywhere in a module."""
    return any("lora_A" in name for name, _ in module.named_parameters())


def merged(module: M) -> M:
    """A plain copy: whole where it was sharded, what adapters add put into the weights; the module itself if it is
    plain already."""
    plain = whole(module)
    if not has_lora(plain):
        return plain
    module = deepcopy(plain) if plain is module else plain
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A") and hasattr(child, "get_base_layer"):
                adapted: Any = child
                adapted.merge()
                setattr(parent, name, adapted.get_base_layer())
    close_attention(module)
    return module


def _maps(tower: nn.Module, where: Where) -> list[str]:
    """The linear maps of a tower's layers, by name."""
    depth, layers = depths(tower)
    return [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
        and 1 <= depth[f"{name}.weight"] <= layers
        and (where == "all" or "attn" in name or "attention" in name)
    ]
