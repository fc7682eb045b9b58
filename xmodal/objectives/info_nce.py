"""InfoNCE in one direction, and SimCSE's use of it.

van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748), equation 4.
Gao et al. 2021, "SimCSE" (arXiv:2104.08821), equations 1 and 5; the weight of hard negatives is the log weight of the
reference code (princeton-nlp/SimCSE, simcse/models.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, scale_of, wide
from xmodal.objectives.directed_info_nce import DirectedInfoNCE
from xmodal.objectives.pairs import Pairs, same_ids


def info_nce_loss(
    query: Tensor, key: Tensor, negatives: Tensor | None = None, *, temperature: float | Tensor = 0.07
) -> Tensor:
    """−mean over queries of log(exp(q_i · k_i / τ) / Σ over all keys and negatives), the other queries' keys included.

    query, key: (b, d), key i is query i's; negatives: (n, d) more keys, which belong to no query. All of all
    processes are each query's candidates; b and n may differ between processes. Rows needn't be unit: with raw dot
    products take temperature 1. temperature: τ, a number or () tensor, which then has a gradient.

    Exact over processes; nothing b × b is kept. Returns () float32, or float64 for float64 rows. Raises ValueError
    for shapes that don't match.
    """
    check_same_shape(query=query, key=key)
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(f"negatives must be (n, {query.shape[1]}) as query, not {tuple(negatives.shape)}")
    return _directed(query, key, negatives, temperature, log_weight=0.0)


def simcse_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    hard_negative_weight: float = 0.0,
    anchor_id: Tensor | None = None,
    positive_id: Tensor | None = None,
) -> Tensor:
    """Each sentence finds its positive among all positives and, where given, all hard negatives of the batch.

    anchor, positive, negative: (b, d) unit, row i of each belongs to sentence i; without labels anchor and positive
    are one sentence under two dropout masks. hard_negative_weight: the weight's logarithm by which an anchor's own
    hard negative counts more than the others' (0: the same).
    anchor_id, positive_id: (b,) long. Positives of an anchor are its own and those, on any process, whose anchor or
    whose positive is the same; the loss is the mean over them, as `clip_loss` has it. A negative is never one.

    Only anchors look for positives, not the other way round, as in the reference code. Exact over processes. Returns
    () float32, or float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(anchor=anchor, positive=positive)
    if negative is not None:
        check_same_shape(anchor=anchor, negative=negative)
    for name, ids in (("anchor_id", anchor_id), ("positive_id", positive_id)):
        if ids is not None and ids.shape != anchor.shape[:1]:
            raise ValueError(f"{name} must be ({len(anchor)},), not {tuple(ids.shape)}")
    log_weight = hard_negative_weight if negative is not None else 0.0
    return _directed(anchor, positive, negative, temperature, log_weight, (anchor_id, positive_id))


def _directed(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    log_weight: float,
    ids: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    scale = scale_of(temperature, query)
    b, device = len(query), query.device
    with torch.autocast(device.type, enabled=False):
        keys = wide(key if negatives is None else torch.cat([key, negatives]))
        spread = distributed.rows(len(keys))
        of_keys = spread if negatives is None else distributed.rows(b)
        found = same_ids(*ids, of_keys, device)
        # Behind the keys of each process lie its negatives, which move up the keys of the processes after it.
        starts = torch.tensor([sum(spread.sizes[:r]) for r in range(len(spread.sizes))], device=device)
        starts -= torch.tensor([sum(of_keys.sizes[:r]) for r in range(len(spread.sizes))], device=device)
        process = torch.arange(len(starts), device=device).repeat_interleave(torch.tensor(of_keys.sizes, device=device))
        row, column = [found.row], [found.column + starts[process[found.column]]]
        if log_weight:  # the own negatives
            row.append(torch.arange(b, device=device))
            column.append(row[-1] + (spread.here.start + b))
        row, column = torch.cat(row), torch.cat(column)
        pairs = Pairs(row, column, torch.arange(len(row), device=device) < len(found.row), log_weight)
        loss = DirectedInfoNCE.apply(wide(query), keys, wide(scale), pairs, spread)
    return loss  # pyright: ignore[reportReturnType]
