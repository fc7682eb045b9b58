"""Which pairs are mined, against loops over all of them."""

from __future__ import annotations

import pytest
import torch

from xmodal.objectives import mined_pairs
from xmodal.objectives.triplet import Mining

Found = set[tuple[int, int, bool]]


def found(features: torch.Tensor, labels: torch.Tensor, mining: Mining, **more: float) -> Found:
    pairs = mined_pairs(features, labels, mining=mining, **more)  # type: ignore[arg-type]
    listed = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True))
    assert all((labels[i] == labels[j]).item() == same and i != j for i, j, same in listed)
    return set(listed)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, 3), torch.tensor([0, 1, 0, 2, 1, 0, 2, 1, 3])  # the last is alone of its class


def test_all(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    assert found(features, labels, "all") == {
        (i, j, bool(labels[i] == labels[j])) for i in range(9) for j in range(i + 1, 9)
    }


def test_hard(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    apart = torch.cdist(features.double(), features.double())
    expected: Found = set()
    for i in range(9):
        positives = [j for j in range(9) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(9) if labels[j] != labels[i]]
        if positives:
            expected.add((i, max(positives, key=lambda j, i=i: apart[i, j].item()), True))
        expected.add((i, min(negatives, key=lambda j, i=i: apart[i, j].item()), False))
    assert found(features, labels, "hard") == expected


def test_semi_hard(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    apart = torch.cdist(features.double(), features.double())
    expected: Found = set()
    for i in range(9):
        for p in range(9):
            further = [j for j in range(9) if labels[j] != labels[i] and apart[i, j] > apart[i, p]]
            if p == i or labels[p] != labels[i] or not further:
                continue
            n = min(further, key=lambda j, i=i: apart[i, j].item())
            if apart[i, n] < apart[i, p] + 0.5:
                expected |= {(i, p, True), (i, n, False)}
    assert expected
    assert found(features, labels, "semi_hard", margin=0.5) == expected


def test_random_is_one_of_each_by_the_seed(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    one = found(features, labels, "random", seed=1)
    assert sorted(i for i, _, same in one if same) == list(range(8))
    assert sorted(i for i, _, same in one if not same) == list(range(9))
    assert one == found(features, labels, "random", seed=1) != found(features, labels, "random", seed=2)


def test_nothing_to_mine() -> None:
    assert found(torch.randn(3, 2), torch.arange(3), "semi_hard") == set()
    assert len(found(torch.randn(3, 2), torch.zeros(3, dtype=torch.long), "hard")) == 3
    assert found(torch.randn(0, 2), torch.zeros(0, dtype=torch.long), "all") == set()
    with pytest.raises(ValueError, match="no mining 'easy'"):
        mined_pairs(torch.randn(3, 2), torch.arange(3), mining="easy")  # type: ignore[arg-type]
