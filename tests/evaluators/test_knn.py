"""k nearest neighbours: by hand, by a literal vote, and by lightly's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xmodal.evaluators import knn as module
from xmodal.evaluators.knn import knn, knn_predictions


def circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_by_hand() -> None:
    train, labels = circle(0, 10, 90, 100, 180), torch.tensor([0, 0, 1, 1, 2])
    test, own = circle(4, 86, 175, 46), torch.tensor([0, 1, 1, 0])
    rank, predicted = knn_predictions(train, labels, test, own, k=1)
    assert predicted.tolist() == [0, 1, 2, 0]
    assert rank.tolist() == [1, 1, 3, 1]  # class 1 has no vote there, nor has 0: a tie is lost
    assert knn(train, labels, test, own, k=1)["top1"] == 0.75
    # Two of three neighbours are of class 1, and a low temperature makes the nearest one count for more.
    near = circle(51, 80, 80), torch.tensor([0, 1, 1])
    assert knn(*near, circle(46), torch.tensor([1]), k=3, temperature=10.0)["top1"] == 1
    assert knn(*near, circle(46), torch.tensor([0]), k=3, temperature=0.01)["top1"] == 1


@pytest.mark.parametrize("k", [1, 7, 200])
def test_is_a_literal_vote_and_lightlys(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightly.utils.benchmarking import knn_predict

    g = torch.Generator().manual_seed(k)
    classes, train, test = 6, torch.randn(150, 8, generator=g), torch.randn(40, 8, generator=g)
    labels, own = (torch.randint(0, classes, (n,), generator=g) for n in (150, 40))
    monkeypatch.setattr(module, "TILE", 1000)  # several tiles, the last one smaller
    rank, predicted = knn_predictions(3 * train, labels, test, own, k=k)
    a, b = F.normalize(train), F.normalize(test)
    for i in range(40):
        near = sorted(range(150), key=lambda j: -float(b[i] @ a[j]))[:k]
        votes = np.zeros(classes)
        for j in near:
            votes[labels[j]] += np.exp(float(b[i] @ a[j]) / 0.1)
        assert predicted[i] == votes.argmax() or rank[i] > 1
        others = [c for c in range(classes) if c != own[i] and votes[c] >= votes[own[i]]]
        assert rank[i] == 1 + len(others)
    theirs = knn_predict(b, a.T, labels, classes, knn_k=min(k, 150), knn_t=0.1)
    assert knn(train, labels, test, own, k=k)["top1"] == (theirs[:, 0] == own).float().mean()


def test_macro_means() -> None:
    train = torch.eye(3)
    found = knn(train, torch.arange(3), train[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 2]), k=1)
    assert found["top1"] == 0.75
    assert found["macro_recall"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["macro_precision"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_equal_rows_know_nothing() -> None:
    rows = torch.ones(10, 4)
    labels = torch.tensor([0, 1] * 5)
    assert knn(rows, labels, rows, labels)["top1"] == 0  # both classes have the same votes


def test_wrong_input() -> None:
    rows, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="must be \\(m, d\\) and \\(n, d\\)"):
        knn(rows, labels, torch.ones(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="labels must be \\(3,\\)"):
        knn(rows, torch.tensor([0, 1, -1]), rows, labels)
    with pytest.raises(ValueError, match="not finite"):
        knn(rows / 0, labels, rows, labels)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn(rows, labels, rows, labels, k=0)
