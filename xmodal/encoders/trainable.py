"""Which parameters of the towers are trained, and how fast."""

from __future__ import annotations

from typing import Any

from torch import nn

from xmodal.encoders.asleep import Sleepers
from xmodal.encoders.depth import depths
from xmodal.encoders.heads import Headed
from xmodal.encoders.two_tower import backbone
from xmodal.errors import InputError


def lock(towers: Sleepers, which: str, unlocked: int = 0) -> None:
    """Freeze the backbone of a tower, "image" or "text", but for its last layers and what comes after them.

    What is frozen stays in evaluation mode: no dropout and no statistics of training; layers with statistics of the
    batch stay so even where they are unlocked. A head is trained always. Raises InputError for more layers than there
    are.
    """
    tower = backbone(getattr(towers, which))
    depth, layers = depths(tower)
    if not 0 <= unlocked <= layers:
        raise InputError(f"--unlock-{which} {unlocked}: the tower has {layers} layers.")
    first = layers + 1 - unlocked if unlocked else layers + 2  # the lowest depth that is trained
    for name, p in tower.named_parameters():
        p.requires_grad_(depth[name] >= first)
    for name, module in tower.named_modules():
        own = [p.requires_grad for p in module.parameters()]
        if own and not any(own):
            towers.keep_in_evaluation(_path(towers, which, name))
    keep_statistics(towers, which)


def keep_statistics(towers: Sleepers, which: str) -> None:
    """Layers with statistics of the batch in a backbone stay in evaluation mode."""
    for name, module in backbone(getattr(towers, which)).named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            towers.keep_in_evaluation(_path(towers, which, name))


def _path(towers: Sleepers, which: str, name: str) -> str:
    """The name in the towers of a module of a backbone."""
    prefix = f"{which}.backbone" if isinstance(getattr(towers, which), Headed) else which
    return f"{prefix}.{name}".rstrip(".")


def is_locked(towers: Sleepers, which: str) -> bool:
    """Whether a tower's backbone is the same all through training, so that its features are, too."""
    return not any(p.requires_grad for p in backbone(getattr(towers, which)).parameters())


def parameter_groups(
    module: nn.Module, towers: Sleepers, *, layer_decay: float = 1.0, backbone_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for the optimizer of a module that holds the towers, or a tower of texts alone, each with its `lr_scale`.

    Gains, biases and scalars have no weight decay (CLIP, section 2.5). In a tower with n layers, layer i learns at
    layer_decay^(n + 1 − i) of the rate (Bao et al. 2021, BEiT), what comes before the layers at ^(n + 1); backbones
    below a fresh head learn at backbone_lr of that.
    """
    scales: dict[int, float] = {}
    for which in ("image", "text"):
        tower = getattr(towers, which, None)
        if tower is None:
            continue
        inside = backbone(tower)
        depth, layers = depths(inside)
        below = backbone_lr if isinstance(tower, Headed) else 1.0
        scales |= {id(p): below * layer_decay ** (layers + 1 - depth[name]) for name, p in inside.named_parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault((scales.get(id(p), 1.0), p.ndim >= 2), []).append(p)
    return [
        {"params": members, "lr_scale": scale, **({} if decayed else {"weight_decay": 0.0})}
        for (scale, decayed), members in groups.items()
    ]
