"""NT-Xent with negatives that are corrected for false ones among them, and of which near ones count more.

Chuang et al. 2020, "Debiased Contrastive Learning" (arXiv:2007.00224), equations 7 and 8. Robinson et al. 2021,
"Contrastive Learning with Hard Negative Samples" (arXiv:2010.04592), equation 4; numbers and details from its code
(joshr17/HCL, image/main.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, scale_of, wide
from xmodal.objectives.log_sum_exp import log_sum_exp
from xmodal.objectives.mean import mean_over_rows
from xmodal.objectives.pairs import dots, of_two_views


def hard_nt_xent_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    debias: float = 0.1,
    hardness: float = 1.0,
) -> Tensor:
    """−mean over the 2B rows of log(exp(p) / (exp(p) + G)), p the logit of the other view and G what negatives weigh:

    G = max((N · Σ_j exp((1 + β) l_j) / Σ_j exp(β l_j) − τ⁺ N exp(p)) / (1 − τ⁺), N exp(−1/τ)), over the N = 2B − 2
    rows of other pictures, l = z · z' / τ. Weights have a gradient and are of logits over τ, as in the code.

    first, second: (b, d) unit, row i of one is another view of row i of the other; b may differ between processes.
    temperature: τ, a number or () tensor, which then has a gradient.
    debias: τ⁺, how likely a negative is of the same class, in [0, 1). hardness: β; 0 is Chuang et al.'s loss, and with
    debias 0 NT-Xent's (then take `nt_xent_loss`, which needs half of the products).

    Exact over processes; nothing b × b is kept. Where all rows are equal it is ln(2B − 1). Returns () float32, or
    float64 for float64 rows. Raises ValueError for shapes and numbers that don't fit.
    """
    check_same_shape(first=first, second=second)
    if not 0 <= debias < 1 or not hardness >= 0:
        raise ValueError(f"debias must be in [0, 1) and hardness at least 0, not {debias} and {hardness}")
    scale = scale_of(temperature, first)
    with torch.autocast(first.device.type, enabled=False):
        rows, scale = wide(torch.cat([first, second])), wide(scale)
        spread = distributed.rows(len(rows))
        positive = dots(*rows.chunk(2)).repeat(2) * scale  # (2b,) float64
        if spread.total <= 2:  # a picture alone
            return mean_over_rows(0 * positive, rows)
        every, own = distributed.gather(rows), of_two_views(spread, rows.device)
        log_n = math.log(spread.total - 2)
        negatives = log_sum_exp(rows, every, (1 + hardness) * scale, own)
        if hardness:
            negatives = negatives - log_sum_exp(rows, every, hardness * scale, own) + log_n
        if debias:
            part = positive + log_n + math.log(debias)
            negatives = _less(negatives, part, log_n - scale.double() + math.log1p(-debias)) - math.log1p(-debias)
        return mean_over_rows(F.softplus(negatives - positive, threshold=40), rows)


def _less(whole: Tensor, part: Tensor, least: Tensor) -> Tensor:
    """log max(exp(whole) − exp(part), exp(least)), (m,), with the gradient of whichever it is."""
    ratio = part - whole
    left = (ratio < 0) & (whole + torch.log(-torch.expm1(ratio)) > least)
    ratio = torch.where(left, ratio, -1)  # elsewhere the logarithm's gradient may be infinite
    return torch.where(left, whole + torch.log(-torch.expm1(ratio)), least)
