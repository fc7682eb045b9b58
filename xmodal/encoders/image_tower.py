"""The image tower of any spec, to be judged: before the projection that joins it with texts, and after it.

Classifiers are best put before the projection: CLIP's linear probes are (Radford et al. 2021, appendix A.3), and so are
SimCLR's (Chen et al. 2020, section 4.2), whose head isn't saved at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.heads import Headed
from xmodal.encoders.hub import at_hand
from xmodal.encoders.image import ImageEncoder, holds_image_encoder, of_size, open_image_encoder
from xmodal.encoders.preparation import Picture, Preparation
from xmodal.errors import InputError

Projection = Callable[[Tensor], Tensor]


class ImageTower:
    """encoder: what makes features (b, d); head: the projection that follows in the model, (b, d) -> (b, e), or None.

    widths: of what `encode_image` puts side by side: "" alone, or "before_head" and "after_head".
    """

    def __init__(self, encoder: ImageEncoder, head: Projection | None) -> None:
        self.encoder, self.head, self.preparation = encoder, head, encoder.preparation
        self.widths = {"": encoder.d}
        if head is not None:
            with torch.no_grad():
                after = head(torch.zeros(1, encoder.d, device=encoder.device)).shape[1]
            self.widths = {"before_head": encoder.d, "after_head": after}

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Picture], batch_size: int = 256) -> Tensor:
        """Paths, PIL images or arrays -> unit rows side by side, (n, sum of widths) float32 on the CPU.

        The tower runs once for both. Raises BadSample.
        """
        parts = [torch.empty(0, sum(self.widths.values()))]
        for a in range(0, len(images), batch_size):
            features = self.encoder(self.preparation.stack(images[a : a + batch_size]).to(self.encoder.device))
            both = [features] if self.head is None else [features, self.head(features)]
            parts.append(torch.cat([F.normalize(rows.float(), dim=1) for rows in both], 1).cpu())
        return torch.cat(parts)

    def apart(self, rows: Tensor) -> dict[str, Tensor]:
        """What `encode_image` put side by side, by name."""
        return dict(zip(self.widths, rows.split(list(self.widths.values()), 1), strict=True))


def open_image_tower(spec: str, side: int | None = None, device: Any = None, *, frozen: bool = True) -> ImageTower:
    """The image tower of a spec in evaluation mode; `small` is a fresh network.

    side: pixels a side instead of those that it takes. frozen: it won't be trained, and keeps its kind of BatchNorm.
    Raises InputError for a spec without an image tower, and for a tower that can't take that size.
    """
    whole, preparation, description = _open(spec, side)
    tower, head = _taken_apart(whole.to(device))
    with torch.no_grad():
        blank = torch.zeros(1, 3, preparation.height, preparation.width, device=device)
        d = tower.eval()(blank).shape[-1]
    encoder = ImageEncoder(tower, d, preparation=preparation, description=description, frozen=frozen)
    if side is not None and spec != "small":
        encoder = of_size(encoder, side, spec)
    return ImageTower(encoder.to(device).eval(), head)


def _open(spec: str, side: int | None) -> tuple[nn.Module, Preparation, dict[str, Any]]:
    spec = at_hand(spec)
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


def _taken_apart(tower: nn.Module) -> tuple[nn.Module, Projection | None]:
    """A tower without the map at its end, and that map; as it is and None if it has none that is known here."""
    from xmodal.encoders.hf import DualImage, ImageFeatures

    if isinstance(tower, Headed):
        return tower.backbone, tower.head.eval()
    if isinstance(tower, DualImage) and hasattr(tower, "visual_projection"):
        return ImageFeatures(tower.vision_model, pooled=True), tower.visual_projection
    if isinstance(getattr(tower, "proj", None), nn.Parameter):  # open_clip's VisionTransformer
        shorter = copy(tower)
        shorter._parameters = {**tower._parameters, "proj": None}  # the tower itself keeps it
        return shorter, partial(_product, matrix=tower.proj)  # pyright: ignore[reportArgumentType]
    head, trunk = (getattr(tower, name, None) for name in ("head", "trunk"))  # open_clip's TimmModel
    if isinstance(trunk, nn.Module) and isinstance(head, nn.Module) and any(True for _ in head.parameters()):
        return trunk, head.eval()
    return tower, None


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    return rows @ matrix
