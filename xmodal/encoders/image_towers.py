"""The image tower of any spec, to be judged: as it is, and before the projection that joins it with texts.

Classifiers are best put before the projection: CLIP's linear probes are (Radford et al. 2021, appendix A.3), and so are
SimCLR's (Chen et al. 2020, section 4.2), whose head isn't saved at all.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmodal.encoders.heads import Headed
from xmodal.encoders.image import ImageEncoder, holds_image_encoder, of_size, open_image_encoder
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError

BEFORE, AFTER = "before_head", "after_head"


def image_towers(
    spec: str, side: int | None = None, device: Any = None, frozen: bool = True
) -> dict[str, ImageEncoder]:
    """A spec's image tower under "", or as it is BEFORE and AFTER the projection, if it ends in one; they share weights.

    `small` is a fresh network. side: pixels a side instead of those that it takes. frozen: it won't be trained; others
    have the BatchNorm of `ImageEncoder`. Raises InputError for a spec without an image tower.
    """
    whole, seen, description = _open(spec, side)
    before = without_projection(whole)
    encoders = {}
    for name, tower in ({"": whole} if before is None else {BEFORE: before, AFTER: whole}).items():
        encoder = ImageEncoder(tower, _width(tower, seen), preparation=seen, description=description, frozen=frozen)
        if side is not None and spec != "small":
            encoder = of_size(encoder, side, spec)
        encoders[name] = encoder.to(device).eval()
    return encoders


def without_projection(tower: nn.Module) -> nn.Module | None:
    """A tower without the map at its end, with the same weights; None if it has none that is known here."""
    from xmodal.encoders.hf import DualImage, ImageFeatures

    if isinstance(tower, Headed):
        return tower.backbone
    if isinstance(tower, DualImage):
        return ImageFeatures(tower.vision_model, pooled=True) if hasattr(tower, "visual_projection") else None
    if isinstance(getattr(tower, "proj", None), nn.Parameter):  # open_clip's VisionTransformer
        return _without_parameter(tower, "proj")
    head = getattr(tower, "head", None)
    if hasattr(tower, "trunk") and isinstance(head, nn.Module) and any(True for _ in head.parameters()):
        trunk: Any = tower.trunk  # open_clip's TimmModel
        return trunk
    return None


def _open(spec: str, side: int | None) -> tuple[nn.Module, Preparation, dict[str, Any]]:
    if spec == "small" or holds_image_encoder(Path(spec)):
        encoder = open_image_encoder(spec, side if spec == "small" else None)
        return encoder.image, encoder.preparation, encoder.description
    if spec.startswith(("timm:", "hf:", "open_clip:")):
        from xmodal.encoders.pair import image_half

        half = image_half(spec)
        assert half.preparation is not None
        return half.backbone, half.preparation, half.description
    if spec.startswith("st:"):
        raise InputError(f"{spec} is a sentence encoder, which has no image tower.")
    from xmodal.encoders import load_towers

    towers = load_towers(spec, device="cpu")
    return towers.image, towers.preparation, towers.description


def _without_parameter(module: nn.Module, name: str) -> nn.Module:
    """A module with the same submodules and parameters but one; the first keeps it."""
    twin = copy(module)
    twin._parameters = {**module._parameters, name: None}
    return twin


def _width(tower: nn.Module, seen: Preparation) -> int:
    with torch.no_grad():
        return tower.eval()(torch.zeros(1, 3, seen.height, seen.width)).shape[-1]
