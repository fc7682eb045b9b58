"""InfoNCE between two towers, exact over processes, with positives by id.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3: the mean of
the cross-entropies of rows and columns of scale · image @ textᵀ, the pairs on the diagonal.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.tiles import Pairs, SymmetricInfoNCE


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    image_id: Tensor | None = None,
    text_id: Tensor | None = None,
    positives: Literal["uniform", "mask"] = "uniform",
    keep_bytes: int = 0,
) -> Tensor:
    """Symmetric InfoNCE of the global batch; backward gives d(global loss)/d(local rows).

    image, text: (b, d) unit, row i of one belongs to row i of the other; b may differ between processes.
    scale: () = 1 / temperature.
    image_id, text_id: (b,) long. P(i) is i itself and every j, on any process, with the same image or the same text.
    positives: "uniform" pulls towards all of P(i): lse_i − mean over P(i) of l_ip, least value mean ln|P(i)|;
        "mask" keeps the diagonal as the only positive and takes the rest of P(i) out of the denominator.
    keep_bytes: memory for exponentials that the backward pass then needn't compute again; the gradient is the same.

    Memory grows with the batch and with the number of places that share an id. Returns () float32, or float64 for
    float64 rows. Raises ValueError for shapes that don't match.
    """
    check_rows(image, text, scale, image_id, text_id)
    with torch.autocast(image.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        places = same_places(len(image), image_id, text_id, image.device)
        pairs = Pairs(*places, positive=_positive(*places, len(image), positives))
        loss = SymmetricInfoNCE.apply(image.to(wide), text.to(wide), scale.to(wide), pairs, keep_bytes)
    return loss  # pyright: ignore[reportReturnType]


def _positive(row: Tensor, column: Tensor, b: int, positives: str) -> Tensor:
    if positives == "uniform":
        return torch.ones_like(row, dtype=torch.bool)
    return distributed.row_numbers(b, row.device)[row] == column


@torch.no_grad()
def same_places(b: int, image_id: Tensor | None, text_id: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places (local row, row of all) of P, (p,) long each, in the order of rows, then columns.

    The diagonal is always in it; equal ids are found by sorting, and the relation is not made transitive.
    """
    rows = torch.arange(b, device=device)
    n = distributed.count(b)
    places = [rows * n + distributed.row_numbers(b, device)]
    for ids in (image_id, text_id):
        if ids is None:
            continue
        every, order = distributed.gather(ids).sort(stable=True)
        first, last = torch.searchsorted(every, ids), torch.searchsorted(every, ids, right=True)
        counts = last - first
        inside = torch.arange(int(counts.sum()), device=device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        places.append(rows.repeat_interleave(counts) * n + order[first.repeat_interleave(counts) + inside])
    every_place = places[0] if len(places) == 1 else torch.cat(places).unique()
    return every_place // max(n, 1), every_place % max(n, 1)


@torch.no_grad()
def info_nce_floor(image_id: Tensor | None, text_id: Tensor | None) -> Tensor:
    """The least value that `clip_loss` with positives="uniform" can have for these ids: mean of ln|P(i)|, ()."""
    ids = image_id if image_id is not None else text_id
    if ids is None:
        return torch.zeros(())
    row, _ = same_places(len(ids), image_id, text_id, ids.device)
    counts = torch.bincount(row, minlength=len(ids))
    return distributed.total(counts.float().log().sum() / distributed.count(len(ids)))


def check_rows(image: Tensor, text: Tensor, scale: Tensor, image_id: Tensor | None, text_id: Tensor | None) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be (b, d), not {tuple(image.shape)} and {tuple(text.shape)}")
    if scale.numel() != 1 or scale.detach().item() < 0:
        raise ValueError(f"scale must be one number of at least 0, not {scale.detach().tolist()}")
    for name, ids in (("image_id", image_id), ("text_id", text_id)):
        if ids is not None and ids.shape != image.shape[:1]:
            raise ValueError(f"{name} must be ({len(image)},) as image has rows, not {tuple(ids.shape)}")
