"""InfoNCE between two towers, exact over processes, with positives by id.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3: the mean of
the cross-entropies of rows and columns of scale · image @ textᵀ, the pairs on the diagonal.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xmodal import distributed


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    image_id: Tensor | None = None,
    text_id: Tensor | None = None,
    positives: Literal["uniform", "mask"] = "uniform",
) -> Tensor:
    """Symmetric InfoNCE of the global batch; backward gives d(global loss)/d(local rows).

    image, text: (b, d) unit, row i of one belongs to row i of the other; b may differ between processes.
    scale: () = 1 / temperature.
    image_id, text_id: (b,) long. P(i) is i itself and every j, on any process, with the same image or the same text.
    positives: "uniform" pulls towards all of P(i): lse_i − mean over P(i) of l_ip, least value mean ln|P(i)|;
        "mask" keeps the diagonal as the only positive and takes the rest of P(i) out of the denominator.

    Returns () float32, or float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    _check(image, text, scale, image_id, text_id)
    with torch.autocast(image.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        image, text, scale = image.to(wide), text.to(wide), scale.to(wide)
        rows = distributed.row_numbers(len(image), image.device)  # (b,) of B
        same = positive_pairs(image_id, text_id)  # (b, B) bool or None
        every_image, every_text = distributed.gather(image), distributed.gather(text)  # (B, d)
        share = torch.zeros((), dtype=wide, device=image.device)
        for local, every in ((image, every_text), (text, every_image)):
            logits = scale * local @ every.T  # (b, B)
            share = share + _from_rows(logits, rows, same, positives).sum()
        return distributed.total(share / (2 * len(every_image)))


def _from_rows(logits: Tensor, rows: Tensor, same: Tensor | None, positives: str) -> Tensor:
    """Each row's loss, (b,)."""
    right = logits.gather(1, rows[:, None]).squeeze(1)  # (b,)
    if same is not None and positives == "mask":
        others = same.scatter(1, rows[:, None], False)
        logits = logits.masked_fill(others, float("-inf"))
    elif same is not None:
        right = (logits * same).sum(1) / same.sum(1)
    return logits.logsumexp(1) - right


@torch.no_grad()
def positive_pairs(image_id: Tensor | None, text_id: Tensor | None) -> Tensor | None:
    """Which rows of all processes are positives of the local ones: (b, B) bool, or None without ids.

    The diagonal is always in it; the relation is not made transitive.
    """
    same = None
    for ids in (image_id, text_id):
        if ids is not None:
            equal = ids[:, None] == distributed.gather(ids)[None, :]
            same = equal if same is None else same | equal
    return same


@torch.no_grad()
def info_nce_floor(image_id: Tensor | None, text_id: Tensor | None) -> Tensor:
    """The least value that `clip_loss` with positives="uniform" can have for these ids: mean of ln|P(i)|, ()."""
    same = positive_pairs(image_id, text_id)
    if same is None:
        return torch.zeros(())
    return distributed.total(same.sum(1).float().log().sum() / same.shape[1])


def _check(image: Tensor, text: Tensor, scale: Tensor, image_id: Tensor | None, text_id: Tensor | None) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be (b, d), not {tuple(image.shape)} and {tuple(text.shape)}")
    if scale.numel() != 1 or scale.detach().item() < 0:
        raise ValueError(f"scale must be one number of at least 0, not {scale.detach().tolist()}")
    for name, ids in (("image_id", image_id), ("text_id", text_id)):
        if ids is not None and ids.shape != image.shape[:1]:
            raise ValueError(f"{name} must be ({len(image)},) as image has rows, not {tuple(ids.shape)}")
