"""InfoNCE between two towers, exact over processes, with positives by id.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3: the mean of
the cross-entropies of rows and columns of scale · image @ textᵀ, the pairs on the diagonal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_two_towers, wide
from xmodal.objectives.pairs import same_ids
from xmodal.objectives.symmetric_info_nce import SymmetricInfoNCE


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
    check_two_towers(image, text, scale, image_id, text_id)
    with torch.autocast(image.device.type, enabled=False):
        spread = distributed.rows(len(image))
        pairs = same_ids(image_id, text_id, spread, image.device)
        if positives == "mask":
            pairs = replace(pairs, positive=spread.numbers(image.device)[pairs.row] == pairs.column)
        loss = SymmetricInfoNCE.apply(wide(image), wide(text), wide(scale), pairs, keep_bytes)
    return loss  # pyright: ignore[reportReturnType]


@torch.no_grad()
def info_nce_floor(image_id: Tensor | None, text_id: Tensor | None) -> Tensor:
    """The least value that `clip_loss` with positives="uniform" can have for these ids: mean of ln|P(i)|, ()."""
    ids = image_id if image_id is not None else text_id
    if ids is None:
        return torch.zeros(())
    spread = distributed.rows(len(ids))
    counts = torch.bincount(same_ids(image_id, text_id, spread, ids.device).row, minlength=len(ids))
    return distributed.total(counts.float().log().sum() / spread.total)
