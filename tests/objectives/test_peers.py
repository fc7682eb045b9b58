"""Value and gradients of the losses against the classes that people use for the same.

The peers make rows unit themselves, so ours get unit rows of the same leaves.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from pytorch_metric_learning import losses as metric_learning
from torch import Tensor

from xmodal.objectives import (
    clip_loss,
    info_nce_loss,
    nt_xent_loss,
    siglip_loss,
    simcse_loss,
    sup_con_loss,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3, 3, 1, 0, 2])  # each at least twice: the peer counts no others


def leaves(n: int = 12, d: int = 7) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(n, d, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_nt_xent_is_lightlys(temperature: float) -> None:
    first, second = leaves()
    ours = nt_xent_loss(unit(first), unit(second), temperature)
    agree(ours, NTXentLoss(temperature=temperature)(first, second), [first, second])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_metric_learnings(temperature: float) -> None:
    first, second = leaves()
    labels = torch.arange(len(first)).repeat(2)
    theirs = metric_learning.NTXentLoss(temperature=temperature)(torch.cat([first, second]), labels)
    agree(nt_xent_loss(unit(first), unit(second), temperature), theirs, [first, second])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sup_con_is_metric_learnings(temperature: float) -> None:
    rows, _ = leaves()
    theirs = metric_learning.SupConLoss(temperature=temperature)(rows, LABELS)
    agree(sup_con_loss(unit(rows), LABELS, temperature), theirs, [rows])


def test_simcse_is_a_cross_entropy_of_cosines() -> None:
    anchor, positive = leaves()
    cosines = F.cosine_similarity(anchor[:, None], positive[None], dim=-1)
    theirs = F.cross_entropy(cosines / 0.05, torch.arange(len(anchor)))
    agree(simcse_loss(unit(anchor), unit(positive)), theirs, [anchor, positive])


FAMILY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clip": lambda x, y: clip_loss(x, y, torch.tensor(20.0)),
    "siglip": lambda x, y: siglip_loss(x, y, torch.tensor(20.0), torch.tensor(-10.0)),
    "nt_xent": lambda x, y: nt_xent_loss(x, y, 0.05),
    "sup_con": lambda x, y: sup_con_loss(torch.cat([x, y]), torch.arange(len(x)).repeat(2) // 3, 0.05),
    "info_nce": lambda x, y: info_nce_loss(x, y, temperature=0.05),
    "simcse": lambda x, y: simcse_loss(x, y, y.roll(1, 0), hard_negative_weight=0.5),
}


def float32_rows(n: int = 300, d: int = 48) -> list[Tensor]:
    return [F.normalize(rows.detach().float(), dim=1) for rows in leaves(n, d)]


@pytest.mark.parametrize("name", FAMILY)
def test_twice_the_same_is_the_same_to_the_bit(name: str) -> None:
    results = []
    for _ in range(2):
        inputs = [rows.clone().requires_grad_() for rows in float32_rows()]
        loss = FAMILY[name](*inputs)
        results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_rows_of_half_precision_give_a_float32_loss_and_gradients_of_their_type(name: str, dtype: torch.dtype) -> None:
    halves = [rows.to(dtype).requires_grad_() for rows in float32_rows()]
    wide = [rows.detach().float().requires_grad_() for rows in halves]
    loss, exact = FAMILY[name](*halves), FAMILY[name](*wide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(loss, halves), torch.autograd.grad(exact, wide), strict=True):
        assert a.dtype == dtype
        assert ((a.float() - b).norm() / b.norm()).item() < 0.01  # rounded once; where rows are used twice, thrice


@pytest.mark.parametrize("name", ["clip", "nt_xent", "info_nce"])
def test_all_rows_equal_is_the_logarithm_of_the_candidates(name: str) -> None:
    rows = F.normalize(torch.ones(37, 5, dtype=torch.float64), dim=1)
    candidates = 2 * 37 - 1 if name == "nt_xent" else 37
    assert FAMILY[name](rows, rows).item() == pytest.approx(torch.tensor(float(candidates)).log().item(), rel=1e-6)
