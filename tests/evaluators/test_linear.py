"""The linear probe: scikit-learn's optimum at the same penalty, its search, ties, classes without rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from xmodal.evaluators import linear as module
from xmodal.evaluators.linear import GRID, PRIOR, WITHOUT_SEARCH, class_ranks, fit_linear, folds, linear


def clouds(
    n: int, d: int = 12, c: int = 4, seed: int = 0, apart: float = 1.0, decades: float = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds of features whose scales differ by so many decades."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    centres = np.random.default_rng(1).normal(size=(c, d)) * apart
    return (centres[labels] + rng.normal(size=(n, d))) * np.logspace(-2, decades - 2, d) + 3, labels


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_optimum_is_scikit_learns(penalty: float, dtype: torch.dtype) -> None:
    rows, labels = clouds(500)
    found = fit_linear(torch.tensor(rows, dtype=dtype), labels, penalty)
    mean, size = rows.mean(0), np.log(rows.std(0))
    scale = np.exp((500 * size + PRIOR * size.mean()) / (500 + PRIOR))
    theirs = LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-10, max_iter=10_000)
    theirs.fit((rows - mean) / scale, labels)
    weight = found.weight.double().numpy() * scale
    # Of a loss whose slope is a float32, the flattest directions are known to fewer digits.
    close = 1e-3 if dtype == torch.float64 else 2e-2
    assert np.abs(weight - theirs.coef_).max() < close * np.abs(theirs.coef_).max()
    test, _ = clouds(300, seed=2)
    shares = torch.softmax(found(test).double(), 1).numpy()
    assert np.abs(shares - theirs.predict_proba((test - mean) / scale)).max() < 1e-3
    assert found.penalty == penalty
    assert not found.tried


def test_figures() -> None:
    rows, labels = clouds(400, apart=0.5)
    test, own = clouds(200, seed=3, apart=0.5)
    figures = linear(rows, labels, test, own, penalty=0.01)
    scores = fit_linear(rows, labels, 0.01)(test)
    assert figures["top1"] == (scores.argmax(1).numpy() == own).mean()
    assert figures["top5"] == 1
    assert 0.3 < figures["macro_f1"] < 1


def test_the_search_finds_the_better_penalty() -> None:
    # Many features, few rows, a third of them with a wrong label: a loose fit learns the rows by heart.
    rows, labels = clouds(200, d=120, c=2, apart=0.3)
    test, own = clouds(2000, d=120, c=2, seed=4, apart=0.3)
    labels = np.where(np.arange(200) % 3 == 0, 1 - labels, labels)
    found = fit_linear(rows, labels)
    loose = fit_linear(rows, labels, 1e-6)
    right = [(class_ranks(one(test), own)[0] == 1).mean() for one in (found, loose)]
    assert right[0] > right[1] + 0.02
    assert found.penalty in found.tried
    assert found.tried[found.penalty] == max(found.tried.values())
    assert 8 <= len(found.tried) <= 11
    assert {1e-6, 1e2} <= {float(f"{p:.6g}") for p in found.tried}
    assert all(min(abs(np.logspace(-6, 2, GRID) - p)) < 1e-12 + 1e-9 * p for p in found.tried)


def test_the_rows_that_are_held_out_can_be_said() -> None:
    rows, labels = clouds(100)
    held = np.arange(100) % 4 == 0
    wrong = np.where(held, (labels + 1) % 4, labels)  # what is held out contradicts the rest: the stiffest is best
    assert fit_linear(rows, wrong, held=held).penalty > fit_linear(rows, labels, held=held).penalty
    with pytest.raises(ValueError, match=r"held must be \(100,\) bool"):
        fit_linear(rows, labels, held=held[:5])


def test_which_rows_are_held_out() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    fold = folds(labels)
    assert np.bincount(fold[:50]).tolist() == [10] * 5
    assert np.bincount(fold[50:60]).tolist() == [2] * 5
    assert sorted(fold[60:].tolist()) == [-1, 0, 1]  # of no class are all rows held out together
    assert np.array_equal(fold, folds(labels))


def test_of_few_rows_each_part_is_held_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = clouds(60)
    solved = []
    solve = module._solve
    monkeypatch.setattr(module, "_solve", lambda rows, *given: (solved.append(len(rows)), solve(rows, *given))[1])
    found = fit_linear(rows, labels)
    assert len(solved) == 5 * len(found.tried) + 1
    assert set(solved[:-1]) <= {46, 47, 48, 49, 50}
    assert solved[-1] == 60
    share = 60 * np.array(list(found.tried.values()))
    assert np.allclose(share, share.round())  # every row was asked for once
    solved.clear()
    monkeypatch.setattr(module, "ENOUGH", 5)
    assert len(fit_linear(rows, labels).tried) + 1 == len(solved)


def test_deviations_of_few_rows_are_drawn_to_their_mean() -> None:
    # In two rows a class the second feature hardly varies, by chance: it would be blown up to the size of the first.
    rows = np.array([[1.0, 1e-4], [1.1, 0.0], [-1.0, 0.0], [-1.1, -1e-4]])
    found = fit_linear(rows, [0, 0, 1, 1], 0.01)
    assert found.weight[0, 1].abs() * rows[:, 1].std() < 0.01 * found.weight[0, 0].abs() * rows[:, 0].std()
    # Of many rows each feature counts by its own deviation, whatever it is counted in.
    many, labels = clouds(4000, d=2, c=2)
    weight, smaller = fit_linear(many, labels, 0.01).weight, fit_linear(many * [1, 1e-3], labels, 0.01).weight
    assert torch.allclose(weight, smaller * torch.tensor([1, 1e-3]), rtol=0.1)


def test_where_nothing_can_be_held_out() -> None:
    rows, labels = np.eye(3), np.arange(3)
    found = fit_linear(rows, labels)
    assert (found.penalty, found.tried) == (WITHOUT_SEARCH, {})
    assert class_ranks(found(rows), labels)[0].tolist() == [1, 1, 1]


def test_a_class_without_rows_never_wins() -> None:
    rows, labels = clouds(60, c=3)
    found = fit_linear(rows, np.array([0, 2, 3])[labels], 0.1, classes=5)
    scores = found(rows)
    assert scores.shape == (60, 5)
    assert torch.isneginf(scores[:, [1, 4]]).all()
    rank, predicted = class_ranks(scores, np.full(60, 4))
    assert (rank == 5).all()
    assert not set(predicted) & {1, 4}


def test_a_feature_that_never_changes_has_no_part() -> None:
    rows, labels = clouds(80)
    rows[:, 3] = 1e4 / 3
    found = fit_linear(rows.astype(np.float32), labels, 0.01)
    assert torch.isfinite(found.weight).all()
    assert found.weight[:, 3].abs().max() < 1e-3 * found.weight.abs().max()
    constant = fit_linear(np.ones((8, 2)), [0, 1] * 4, 0.01)  # an encoder that has collapsed
    assert class_ranks(constant(np.ones((2, 2))), [0, 1])[0].tolist() == [2, 2]


def test_ranks_of_scores() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 3.0, 0.0], [0.0, 1.0, 2.0]])
    rank, predicted = class_ranks(scores, [0, 0, 0])
    assert rank.tolist() == [1, 2, 3]  # a tie is lost
    assert predicted.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "labels", "penalty", "said"),
    [
        (np.ones(4), [0, 1, 0, 1], None, r"rows must be \(n, d\)"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], None, "not finite"),
        (np.ones((4, 2)), [0, 1], None, r"labels must be \(4,\)"),
        (np.ones((4, 2)), [0.5] * 4, None, "whole numbers"),
        (np.ones((4, 2)), [1] * 4, None, "at least two classes, not 1"),
        (np.ones((4, 2)), [0, 1, 0, 1], 0, "more than 0"),
    ],
)
def test_wrong_input(rows: np.ndarray, labels: list, penalty: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_linear(rows, labels, penalty)
