"""How pictures are prepared, in the words of open_clip and of transformers."""

from __future__ import annotations

from typing import Any

from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, which transformers' files hold


def to_open_clip(seen: Preparation) -> tuple[dict[str, Any], list[str]]:
    """open_clip's preprocess_cfg, and what isn't quite the same. Raises InputError for what it can't do."""
    if seen.edge is not None:
        raise InputError(
            f"open_clip scales pictures to the size it cuts out; this model scales them to {seen.edge} "
            f"and cuts out {seen.height}."
        )
    notes = [_cut("open_clip rounds to the nearest even number")] if _cuts(seen) and seen.crop == "floor" else []
    return {
        "size": seen.height if seen.height == seen.width else [seen.height, seen.width],
        "mode": "RGB",
        "mean": list(seen.mean),
        "std": list(seen.std),
        "interpolation": seen.interpolation,
        "resize_mode": seen.resize,
        "fill_color": seen.fill,
    }, notes


def to_transformers(seen: Preparation, model_type: str) -> tuple[dict[str, Any], list[str]]:
    """transformers' preprocessor_config.json, and what isn't quite the same. Raises InputError for what it can't do.

    The names are of its version 5, and of 4 as well. Its Pillow processor (`backend="pil"`; in version 4 the slow one)
    gives our pixels; torchvision's, its default since version 5, scales a little differently.
    """
    size: dict[str, Any]
    crop: dict[str, Any] = {"do_center_crop": False} if model_type == "clip" else {}
    if seen.resize == "squash":
        size = {"height": seen.height, "width": seen.width}
    elif seen.resize == "shortest" and seen.height == seen.width:
        size = {"shortest_edge": seen.edge or seen.height}
        crop = {"do_center_crop": True, "crop_size": {"height": seen.height, "width": seen.width}}
    else:
        raise InputError(
            f"transformers' image processor can't fit pictures into {seen.height} × {seen.width} pixels as this model "
            f"sees them, by {seen.resize!r}."
        )
    notes = [_cut("transformers rounds down")] if _cuts(seen) and seen.crop == "round" else []
    return {
        "image_processor_type": "CLIPImageProcessor" if model_type == "clip" else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[seen.interpolation],
        **crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(seen.mean),
        "image_std": list(seen.std),
    }, notes


def cut_alike(seen: Preparation, width: int, height: int) -> bool:
    """Whether both ways of rounding cut the same middle out of a picture of this size."""
    if not _cuts(seen):
        return True
    edge = seen.edge or seen.height
    scaled = int(edge * max(width, height) / min(width, height))
    return all((side - seen.height) % 4 != 3 for side in (scaled, edge))


def _cuts(seen: Preparation) -> bool:
    return seen.resize == "shortest"


def _cut(how: str) -> str:
    return (
        f"Where the middle begins at half a pixel, {how}: pictures of which 3, 7, 11 … pixels are cut off are seen a "
        "pixel further left or up."
    )
