"""What objectives check of their arguments, and the type they compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def check_two_towers(
    image: Tensor, text: Tensor, scale: Tensor, image_id: Tensor | None, text_id: Tensor | None
) -> None:
    """ValueError unless rows match, the scale is one number of at least 0 and ids have a number a row."""
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be (b, d), not {tuple(image.shape)} and {tuple(text.shape)}")
    if scale.numel() != 1 or scale.detach().item() < 0:
        raise ValueError(f"scale must be one number of at least 0, not {scale.detach().tolist()}")
    for name, ids in (("image_id", image_id), ("text_id", text_id)):
        if ids is not None and ids.shape != image.shape[:1]:
            raise ValueError(f"{name} must be ({len(image)},) as image has rows, not {tuple(ids.shape)}")


def check_same_shape(**rows: Tensor) -> None:
    """ValueError unless both are (b, d)."""
    (one, first), (other, second) = rows.items()
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"{one} and {other} must both be (b, d), not {tuple(first.shape)} and {tuple(second.shape)}")


def scale_of(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature as a () tensor, with a gradient where that has one. ValueError unless it is positive."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature must be more than 0, not {temperature}")
        return torch.tensor(1 / temperature, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if temperature.numel() != 1 or not bool(temperature.detach() > 0):
        raise ValueError(f"temperature must be one number of more than 0, not {temperature.detach().tolist()}")
    return 1 / temperature


def wide(x: Tensor) -> Tensor:
    """In float32 or better. On a GPU rows of half precision stay: its matrix products add them up in float32."""
    return x if x.is_cuda and x.ndim == 2 else exact(x)


def exact(x: Tensor) -> Tensor:
    """In float32 or better everywhere: for what is no matrix product."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
