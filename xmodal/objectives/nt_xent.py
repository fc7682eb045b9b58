"""NT-Xent: two views of a picture find each other among all views of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709),
equation 1. The mean over all 2N rows, as in the paper; the reference code (google-research/simclr, objective.py) adds
the means of the two views, which is twice that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.self_info_nce import SelfInfoNCE
from xmodal.objectives.tiles import Pairs


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """−mean over the 2B rows of log(exp(z_i · z_p / τ) / Σ over all rows but i), p the other view.

    first, second: (b, d) unit, row i of one is another view of row i of the other; b may differ between processes.
    temperature: τ, a number or () tensor, which then has a gradient.

    Exact over processes; half of the similarities are computed and none kept. Returns () float32, or float64 for
    float64 rows. Raises ValueError for shapes that don't match.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"first and second must both be (b, d), not {tuple(first.shape)} and {tuple(second.shape)}")
    scale = inverse(temperature, first)
    with torch.autocast(first.device.type, enabled=False):
        wide = torch.promote_types(first.dtype, torch.float32)
        rows = torch.cat([first, second]).to(wide)
        m, b = len(rows), len(first)
        own = torch.arange(m, device=rows.device)
        here = distributed.row_numbers(m, rows.device)
        other = here.roll(b) if b else here
        places = torch.stack([own.repeat(2), torch.cat([here, other])])
        positive = torch.cat([torch.zeros_like(own), torch.ones_like(own)]).bool()
        order = (places[0] * 2 + positive).argsort()
        pairs = Pairs(places[0][order], places[1][order], positive[order])
        weight = torch.full((m,), 1 / max(1, distributed.count(m)), dtype=torch.float64, device=rows.device)
        loss = SelfInfoNCE.apply(rows, scale.to(wide), pairs, weight)
    return loss  # pyright: ignore[reportReturnType]


def inverse(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature as a () tensor, with a gradient where that has one. ValueError unless it is positive."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature must be more than 0, not {temperature}")
        return torch.tensor(1 / temperature, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if temperature.numel() != 1 or not bool(temperature.detach() > 0):
        raise ValueError(f"temperature must be one number of more than 0, not {temperature.detach().tolist()}")
    return 1 / temperature
