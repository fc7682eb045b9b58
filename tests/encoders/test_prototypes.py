"""Prototypes are unit, have no bias, and may be fixed for a while."""

from __future__ import annotations

import torch

from xmodal.encoders.prototypes import Prototypes


def test_scores_are_products_with_unit_rows() -> None:
    prototypes, rows = Prototypes(5, 3), torch.randn(4, 2, 3)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes(rows), torch.einsum("bvd,kd->bvk", rows, prototypes.weight))
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]


def test_fixed_they_have_no_gradient_and_weight_decay_leaves_them_alone() -> None:
    prototypes, rows = Prototypes(5, 3), torch.randn(4, 3, requires_grad=True)
    prototypes(rows, fixed=True).square().sum().backward()
    before = prototypes.weight.detach().clone()
    torch.optim.AdamW(prototypes.parameters(), weight_decay=0.5).step()
    assert prototypes.weight.grad is None
    assert torch.equal(prototypes.weight, before)
    assert rows.grad is not None
    prototypes(rows).square().sum().backward()
    assert prototypes.weight.grad is not None


def test_after_a_step_they_are_unit_again() -> None:
    prototypes = Prototypes(5, 3)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    prototypes.normalise()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
