"""`triplet_loss` against its formula written out in float64, triplet by triplet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.objectives import rows_without_positive, triplet_loss

MININGS = ["semi_hard", "hard", "all", "random"]


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def reference(features: Tensor, labels: list[int], margin: float, mining: str, seed: int) -> Tensor:
    """Every anchor by itself: its positives, its negatives, and which triplets of them are taken."""
    n = len(labels)

    def distance(i: int, j: int) -> Tensor:
        return (features[i] - features[j]).square().sum().sqrt()

    draws = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    losses = []
    for a in range(n):
        positives = [j for j in range(n) if j != a and labels[j] == labels[a]]
        negatives = [j for j in range(n) if labels[j] != labels[a]]
        if not positives or not negatives:
            continue
        far = {j: distance(a, j).item() for j in positives + negatives}
        if mining == "all":
            taken = [(p, m) for p in positives for m in negatives]
        elif mining == "hard":
            taken = [(max(positives, key=far.__getitem__), min(negatives, key=far.__getitem__))]
        elif mining == "semi_hard":
            further = {p: [m for m in negatives if far[p] < far[m] < far[p] + margin] for p in positives}
            taken = [(p, min(further[p], key=far.__getitem__)) for p in positives if further[p]]
        else:
            taken = [(positives[int(draws[a, 0] * len(positives))], negatives[int(draws[a, 1] * len(negatives))])]
        losses += [distance(a, p) - distance(a, m) + margin for p, m in taken]
    losses = [loss for loss in losses if loss > 0]
    return sum(losses) / len(losses) if losses else features.sum() * 0


@pytest.mark.parametrize("mining", MININGS)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99), st.floats(0.01, 3), st.data())
def test_it_is_the_formula(
    mining: Any, b: int, d: int, classes: int, seed: int, margin: float, data: st.DataObject
) -> None:
    features = rows(b, d, seed)
    labels = torch.randint(0, classes, (b,), generator=torch.Generator().manual_seed(seed))
    want = reference(features, labels.tolist(), margin, mining, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal.objectives.triplet.BLOCK", data.draw(st.sampled_from([1, 40, 10**6])))
        got = triplet_loss(features, labels, margin=margin, mining=mining, seed=seed)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    (found,), (wanted,) = torch.autograd.grad(got, [features]), torch.autograd.grad(want, [features])
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [5, 5, 5, 5]], ids=["no positive", "no negative"])
def test_without_triplets_it_is_zero_with_a_gradient(mining: Any, labels: list[int]) -> None:
    features = rows(4, 3, 0)
    loss = triplet_loss(features, torch.tensor(labels), mining=mining)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", MININGS)
def test_where_classes_are_apart_it_is_zero_with_a_gradient(mining: Any) -> None:
    features = (rows(6, 3, 0).detach() / 100 + torch.arange(6)[:, None] // 2).requires_grad_()
    loss = triplet_loss(features, torch.arange(6) // 2, mining=mining)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", ["hard", "all", "random"])
def test_equal_rows_cost_the_margin_and_have_no_direction_to_part_in(mining: Any) -> None:
    features = rows(1, 3, 0).detach().expand(6, 3).clone().requires_grad_()
    loss = triplet_loss(features, torch.arange(6) // 2, margin=0.3, mining=mining)
    loss.backward()
    assert loss.item() == pytest.approx(0.3, rel=1e-9)
    assert torch.equal(features.grad, torch.zeros_like(features))  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", MININGS)
def test_what_is_not_finite_shows(mining: Any) -> None:
    features = rows(6, 3, 0).detach()
    features[2, 1] = float("nan")
    assert triplet_loss(features, torch.arange(6) // 2, mining=mining).isnan()


def test_random_triplets_follow_from_the_seed_alone() -> None:
    features, labels = rows(60, 4, 0), torch.arange(60) % 6
    first = triplet_loss(features, labels, margin=5.0, mining="random", seed=1)
    torch.manual_seed(7)
    assert torch.equal(triplet_loss(features, labels, margin=5.0, mining="random", seed=1), first)
    assert triplet_loss(features, labels, margin=5.0, mining="random", seed=2) != first


def test_near_rows_of_float32_keep_their_distance() -> None:
    # Distances of 1e-4 between unit rows, of which float32 products would make nothing.
    g = torch.Generator().manual_seed(0)
    features = 1 / 8 + 1e-5 * torch.randn(40, 64, generator=g)
    labels = torch.arange(40) % 5
    single, double = features.clone().requires_grad_(), features.double().requires_grad_()
    losses = [triplet_loss(x, labels, margin=1e-5, mining="all") for x in (single, double)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    grads = [torch.autograd.grad(loss, [x])[0] for loss, x in zip(losses, (single, double), strict=True)]
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-6)


def test_rows_that_are_alone_in_their_class_are_counted() -> None:
    assert rows_without_positive(torch.tensor([3, 1, 3, 2, 1, 9])).item() == 2
    assert rows_without_positive(torch.zeros(0, dtype=torch.long)).item() == 0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"labels \(b,\) long, not \(3, 2\) and \(4,\)"):
        triplet_loss(torch.ones(3, 2), torch.arange(4))
    with pytest.raises(ValueError, match=r"labels \(b,\) long"):
        triplet_loss(torch.ones(3, 2), torch.ones(3))
    wrong: Any = "semihard"
    with pytest.raises(ValueError, match="no mining 'semihard'; did you mean 'semi_hard'"):
        triplet_loss(torch.ones(3, 2), torch.arange(3), mining=wrong)
