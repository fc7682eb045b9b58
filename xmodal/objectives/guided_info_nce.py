"""InfoNCE without the negatives that another model holds for more alike than the pair itself.

Solatorio 2024, "GISTEmbed: Guided In-sample Selection of Training Negatives" (arXiv:2402.16829), section 3. The margin
is sentence-transformers' (GISTEmbedLoss, margin_strategy "absolute").
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, exact, scale_of, wide
from xmodal.objectives.log_sum_exp import Guide, log_sum_exp
from xmodal.objectives.mean import mean_over_rows
from xmodal.objectives.pairs import Pairs, dots

ROUNDING = 1e-6  # of a product of unit rows in float32


def guided_info_nce_loss(
    query: Tensor,
    key: Tensor,
    guide_query: Tensor,
    guide_key: Tensor,
    negatives: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.01,
    margin: float = 0.0,
    within: bool = True,
) -> Tensor:
    """−mean over queries of log(exp(q_i · k_i / τ) / Σ over what the guide leaves as negatives, and k_i).

    query, key: (b, d) unit, key i is query i's; negatives: (n, d) unit, more keys, which belong to no query.
    guide_query, guide_key, guide_negatives: (b, e), (b, e), (n, e) unit, the same things as the guide embeds them,
    without gradient. All of all processes are candidates; b and n may differ between processes.
    margin: a candidate whose similarity in the guide is above that of query and key, less the margin, is no negative;
        one that equals it to rounding isn't either: it is most likely the same thing again.
    within: other queries are a query's negatives as well, and other keys its key's, as in the paper. Without it, and
        both ways round, it is `clip_loss` with a guide.
    temperature: τ, a number or () tensor, which then has a gradient; 0.01 as in the paper.

    Exact over processes; neither similarities nor the guide's are kept. Returns () float32, or float64 for float64
    rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(query=query, key=key)
    check_same_shape(guide_query=guide_query, guide_key=guide_key)
    if len(guide_query) != len(query):
        raise ValueError(f"the guide must have {len(query)} rows as query has, not {len(guide_query)}")
    if (negatives is None) != (guide_negatives is None):
        raise ValueError("negatives and guide_negatives go together")
    if negatives is not None and guide_negatives is not None:
        wanted = (len(negatives), query.shape[1]), (len(negatives), guide_query.shape[1])
        if (negatives.shape, guide_negatives.shape) != wanted:
            shapes = tuple(negatives.shape), tuple(guide_negatives.shape)
            raise ValueError(f"negatives and guide_negatives must be (n, d) and (n, e) as the queries, not {shapes}")
    scale = scale_of(temperature, query)
    with torch.autocast(query.device.type, enabled=False):
        query, key, scale = wide(query), wide(key), wide(scale)
        guide_query, guide_key = (exact(rows.detach()) for rows in (guide_query, guide_key))
        most = dots(guide_query, guide_key) - margin - ROUNDING
        keys, guide_keys = [distributed.gather(key)], [distributed.gather(guide_key)]
        if within:
            keys.append(distributed.gather(query))
            guide_keys.append(distributed.gather(guide_query))
        if negatives is not None and guide_negatives is not None:
            keys.append(distributed.gather(wide(negatives)))
            guide_keys.append(distributed.gather(exact(guide_negatives.detach())))

        own, here = torch.arange(len(query), device=query.device), distributed.row_numbers(len(query), query.device)
        positive = dots(query, key) * scale
        itself = Pairs(own, here, torch.ones_like(own, dtype=torch.bool))
        both = Pairs(own.repeat(2), torch.cat([here, here + len(keys[0])]), itself.positive.repeat(2))
        guide = Guide(guide_query, torch.cat(guide_keys), most.to(guide_query.dtype))
        sums = [log_sum_exp(query, torch.cat(keys), scale, both if within else itself, guide)]
        if within:
            guide = Guide(guide_key, guide_keys[0], guide.most)
            sums.append(log_sum_exp(key, keys[0], scale, itself, guide))
        # The positive's own term, exp(0), is among them, so that a query without negatives has loss 0.
        terms = torch.stack([torch.zeros_like(positive), *(negative - positive for negative in sums)])
        return mean_over_rows(terms.logsumexp(0), query)
