"""Retrieval between pictures and texts, both directions from one pass over the similarities.

Protocol. Each unique picture asks for its texts among all unique texts, each text for its pictures among all unique
pictures. A query's rank is that of its best right answer: 1 + the number of wrong answers that are at least as similar.
Right answers never count against each other; a tie with a wrong one is lost, so that embeddings which are all equal
score 0 and not by luck. Similarities closer than 2⁻¹⁹ of the two rows' lengths are ties: copies of one row may differ
in the last bits of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

TIE = 2.0**-19  # products of unit rows were off by up to 2⁻²⁰ (25,000 rows of width 384), which lost some ties
TILE = 512, 4096  # images × texts whose similarities are held at a time; multiples of LANE and of 8 · LANE
LANE = 128  # flags that are added up in one byte


def retrieval(
    image: Any, text: Any, image_of_text: Any = None, ks: Sequence[int] = (1, 5, 10), *, pairs: Any = None
) -> dict[str, float]:
    """Recall at k, median and mean rank of both directions, as "image_to_text/R@1" or "text_to_image/median_rank".

    image: (n, d), text: (m, d), arrays or tensors; normalise them for cosines.
    image_of_text: (m,) long, the image that each text belongs to. pairs: (p, 2) long rows (image, text) instead, where
    a text belongs to several images.
    R@k of images is a hit if any of their texts is among the k nearest; texts count one by one.

    Not comparable between galleries of different sizes, nor with figures that were averaged over folds of 1,000.
    Raises ValueError for shapes that don't match, numbers that aren't finite and queries without a right answer.
    """
    of_image, of_text = ranks(image, text, _pairs(image_of_text, pairs, len(text)))
    return {**_summary("image_to_text", of_image, ks), **_summary("text_to_image", of_text, ks)}


@torch.no_grad()
def ranks(image: Any, text: Any, pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each query's best right answer, from 1: of images among texts (n,), of texts among images (m,).

    image: (n, d), text: (m, d); pairs: (p, 2) long rows (image, text), all that belong together.
    Beyond its inputs it takes O(n + m + p) memory and one tile. On the device of `image`, if that is a tensor.
    Products are float32 or better, under autocast too; torch.set_float32_matmul_precision below "highest" loosens them.
    """
    image, text = _matrix("image", image), _matrix("text", text)
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"image and text must have one width, not {tuple(image.shape)} and {tuple(text.shape)}")
    if not len(image) or not len(text):
        raise ValueError(f"image and text must have rows, not {tuple(image.shape)} and {tuple(text.shape)}")
    text = text.to(image)
    pairs = _checked_pairs(pairs, len(image), len(text)).to(image.device)
    i, t = pairs.unbind(1)

    some = zip(i.split(65536), t.split(65536), strict=True)
    right = torch.cat([(image[a] * text[b]).sum(1) for a, b in some])  # (p,)
    right -= TIE * image.norm(dim=1)[i] * text.norm(dim=1)[t]  # of a pair's own lengths: a long row blurs no other
    least = torch.full((len(image),), float("-inf"), dtype=image.dtype, device=image.device)
    for_image = least.scatter_reduce(0, i, right, "amax")  # (n,)
    least = torch.full((len(text),), float("-inf"), dtype=image.dtype, device=image.device)
    for_text = least.scatter_reduce(0, t, right, "amax")  # (m,)

    above_image = torch.zeros(len(image), dtype=torch.long, device=image.device)
    above_text = torch.zeros(len(text), dtype=torch.long, device=image.device)
    order = torch.argsort(i * len(text) + t)  # pairs by image, then text: a panel's are one stretch
    i, t = i[order], t[order]
    height, width = TILE
    flags = torch.zeros(TILE, dtype=torch.bool, device=image.device)
    for a in range(0, len(image), height):
        panel = image[a : a + height]
        first, last = torch.searchsorted(i, torch.tensor([a, a + len(panel)], device=i.device)).tolist()
        pi, pt = i[first:last] - a, t[first:last]
        for c in range(0, len(text), width):
            with torch.autocast(image.device.type, enabled=False):
                tile = panel @ text[c : c + width].T  # (height, width), less at the edges
            inside = (pt >= c) & (pt < c + width)
            tile[pi[inside], pt[inside] - c] = float("-inf")  # right answers are wrong for nobody
            rows, columns = tile.shape
            if tile.shape != TILE:
                flags.zero_()
            torch.ge(tile, for_image[a : a + height, None], out=flags[:rows, :columns])
            above_image[a : a + height] += _sum_of_rows(flags)[:rows]
            torch.ge(tile, for_text[None, c : c + width], out=flags[:rows, :columns])
            above_text[c : c + width] += _sum_of_columns(flags)[:columns]
    return (above_image + 1).cpu().numpy(), (above_text + 1).cpu().numpy()


# Flags are bytes of 0 or 1. Seen as 64-bit integers, eight of them are added at once; fewer than 256 never carry over
# into the next byte. This takes a thirtieth of the time of torch's sum of booleans, which was a third of the whole.


def _sum_of_rows(flags: Tensor) -> Tensor:
    """(height, width) bool -> (height,) int64, how many of a row are true."""
    lanes = flags.view(torch.int64).view(len(flags), -1, LANE).sum(2)  # (height, width / 8 / LANE)
    return lanes.view(torch.uint8).sum(1, dtype=torch.int64)


def _sum_of_columns(flags: Tensor) -> Tensor:
    """(height, width) bool -> (width,) int64, how many of a column are true."""
    lanes = flags.view(torch.int64).view(-1, LANE, flags.shape[1] // 8).sum(1)  # (height / LANE, width / 8)
    return lanes.view(torch.uint8).sum(0, dtype=torch.int64)


def hits(rank: np.ndarray, k: int) -> np.ndarray:
    """Which queries have a right answer among the first k, as 0 and 1: the values of which R@k is the mean."""
    return (rank <= k).astype(np.float64)


def _summary(direction: str, rank: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    return {
        **{f"{direction}/R@{k}": float(hits(rank, k).mean()) for k in ks},
        f"{direction}/median_rank": float(np.median(rank)),
        f"{direction}/mean_rank": float(rank.mean()),
    }


def _pairs(image_of_text: Any, pairs: Any, m: int) -> Tensor:
    if (image_of_text is None) == (pairs is None):
        raise ValueError("give either image_of_text or pairs")
    if pairs is not None:
        return torch.as_tensor(pairs)
    owner = torch.as_tensor(image_of_text)
    if owner.shape != (m,) or owner.is_floating_point():
        raise ValueError(f"image_of_text must be ({m},) long, one a text, not {tuple(owner.shape)} {owner.dtype}")
    return torch.stack([owner, torch.arange(len(owner), device=owner.device)], 1)


def _checked_pairs(pairs: Any, n: int, m: int) -> Tensor:
    pairs = torch.as_tensor(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
        raise ValueError(f"pairs must be (p, 2) long, not {tuple(pairs.shape)} {pairs.dtype}")
    pairs = pairs.long().unique(dim=0)
    for column, (name, size) in enumerate((("image", n), ("text", m))):
        rows = pairs[:, column]
        if len(rows) and (rows.min() < 0 or rows.max() >= size):
            raise ValueError(f"pairs name {name} rows {int(rows.min())} to {int(rows.max())}; there are {size}")
        without = torch.ones(size, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)
        if without.any():
            raise ValueError(f"{name} row {int(without.nonzero()[0])} has no right answer: leave it out of the queries")
    return pairs


def _matrix(name: str, rows: Any) -> Tensor:
    rows = torch.as_tensor(rows).detach()
    if rows.ndim != 2:
        raise ValueError(f"{name} must be (rows, d), not {tuple(rows.shape)}")
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return rows
