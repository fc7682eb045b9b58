"""A linear classifier on frozen features: multinomial logistic regression, solved and not merely trained.

It minimises the mean cross-entropy + penalty / 2 · ‖W‖² by L-BFGS, so there is neither a learning rate nor a number of
epochs to choose, and two encoders differ by their features alone. Each feature is brought to mean 0 and deviation 1
over the training rows first (He et al. 2022, arXiv:2111.06377, appendix A.2, do it by a BatchNorm), for encoders differ
in scale by orders of magnitude and a penalty would mean another thing to each; the bias is free. The deviations that
few rows have are drawn to their mean: from four pictures a class of CIFAR-10 and 768 features, 27 % of its other
training pictures became 38 % (three draws). How far was chosen there: no picture that is judged had a part in it.

Where no penalty is given, one is searched for on rows that are held out, as for CLIP (Radford et al. 2021, appendix
A.3): a coarse look, then halving the step around the best. CLIP_benchmark searches 1e-6 … 1e2, too; there it is AdamW's
weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.data.order import shuffle
from xmodal.evaluators.zeroshot import confusion, macro

GRID = 97  # penalties from 1e-6 to 1e2, twelve a decade, as many as in CLIP_benchmark
COARSE, FINE = 24, 3  # steps of the grid: two decades at first, a quarter of one at the end
FOLDS = 5  # one of them is held out while the penalty is searched for
ENOUGH = 1000  # rows in it; of fewer, each of the five is held out in turn: ten rows choose by chance
WITHOUT_SEARCH = 1e-2  # the penalty where no class has two rows, of which one could be held out
PRIOR = 100  # rows that the usual deviation counts as, beside the rows there are; 20 and 1,000 are within a point of it
MOST_ITERATIONS = 500
WHILE_SEARCHING = 100  # iterations, each fit going on from the last
ROWS = 8192  # whose logits are held at a time


@dataclass(frozen=True)
class Linear:
    """weight (c, d), bias (c,): of features as they come, for their mean and deviation are part of both.

    A class without training rows has weight 0 and bias −∞. penalty: the one it was fitted with. tried: penalties and
    the accuracy of each on the rows held out; empty where none was searched for.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    tried: dict[float, float]

    def __call__(self, rows: Any) -> Tensor:
        """Features (n, d) -> scores (n, c), the logarithms of the classes' odds but for a constant of each row."""
        rows = torch.as_tensor(rows).to(self.weight)
        return rows @ self.weight.T + self.bias


def linear(
    train: Any, train_labels: Any, test: Any, test_labels: Any, penalty: float | None = None
) -> dict[str, float]:
    """Accuracy and per-class means: {"top1", "top5", "macro_precision", "macro_recall", "macro_f1"}.

    train: (m, d) and test: (n, d), arrays or tensors; labels: (m,) and (n,) long. A tie with a wrong class is lost.

    It says what a straight cut can tell from the features given these training rows. A wider encoder has more numbers
    to cut by: compare at one width or say both. Raises ValueError as `fit_linear` does.
    """
    labels = np.asarray(torch.as_tensor(test_labels).cpu())
    classes = int(max(labels.max(), torch.as_tensor(train_labels).max())) + 1
    rank, predicted = class_ranks(fit_linear(train, train_labels, penalty, classes)(test), labels)
    return {
        "top1": float((rank == 1).mean()),
        "top5": float((rank <= 5).mean()),
        **macro(confusion(labels, predicted, classes)),
    }


@torch.no_grad()
def fit_linear(
    rows: Any, labels: Any, penalty: float | None = None, classes: int | None = None, held: Any = None
) -> Linear:
    """The classifier of features (n, d) with labels (n,) long; on the device of `rows`, if that is a tensor.

    penalty: None searches for one on the rows `held`, (n,) bool, or else on a fifth of each class, and of few rows on
    each fifth in turn; then all rows are fitted.
    classes: how many there are, if the last of them may have no row. float64 rows are fitted in float64, others in
    float32. Beyond a copy of the rows it takes some multiples of c · d and the logits of `ROWS` rows.
    Raises ValueError for shapes that don't match, numbers that aren't finite, fewer than two classes, a penalty that
    is not more than 0.
    """
    rows, labels = _checked(rows, labels)
    if penalty is not None and not penalty > 0:
        raise ValueError(f"the penalty must be more than 0, not {penalty}")
    there, number = labels.unique(return_inverse=True)
    if len(there) < 2:
        raise ValueError(f"a classifier needs rows of at least two classes, not {len(there)}")
    c = max(int(there.max()) + 1, classes or 0)
    mean = rows.mean(0)
    deviation = _deviations(rows, mean)
    rows = (rows - mean) / deviation
    tried: dict[float, float] = {}
    if penalty is None:
        penalty, tried = _search(rows, number, len(there), held)
    weight, bias = _solve(rows, number, len(there), penalty)
    weight = weight / deviation
    whole_weight, whole_bias = rows.new_zeros(c, rows.shape[1]), rows.new_full((c,), float("-inf"))
    whole_weight[there], whole_bias[there] = weight, bias - weight @ mean
    return Linear(whole_weight, whole_bias, penalty, tried)


def class_ranks(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, c), labels (n,) long -> the rank of each row's own class from 1, (n,), and the class that wins, (n,).

    Of a tie with a wrong class that one wins.
    """
    scores = torch.as_tensor(scores).detach()
    own = torch.as_tensor(labels, device=scores.device).long()[:, None]
    mine = scores.gather(1, own)
    wrong = scores.scatter(1, own, float("-inf"))
    rank = 1 + (wrong >= mine).sum(1) - (mine[:, 0] == float("-inf")).long()  # its own place is among them then
    winner = torch.where(rank == 1, own[:, 0], wrong.argmax(1))
    return rank.cpu().numpy(), winner.cpu().numpy()


def _deviations(rows: Tensor, mean: Tensor) -> Tensor:
    """What each feature of (n, d) is divided by, (d,): its deviation, of few rows drawn to that of all features."""
    deviation = (rows - mean).square().mean(0).sqrt()
    varies = deviation > 1e-6 * rows.abs().amax(0)  # what is left of a feature that is the same in all rows is rounding
    if not varies.any():
        return torch.ones_like(deviation)
    size = torch.where(varies, deviation, torch.ones_like(deviation)).log()
    usual = size[varies].mean()
    own = len(rows) / (len(rows) + PRIOR)
    return (own * torch.where(varies, size, usual) + (1 - own) * usual).exp()


def folds(labels: np.ndarray) -> np.ndarray:
    """Which of FOLDS parts each row belongs to, (n,); each class is shared out evenly. −1: a row alone in its class."""
    found = np.full(len(labels), -1)
    order = shuffle(np.arange(len(labels)), len(labels), 0, 0)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        if len(own) > 1:
            found[own] = np.arange(len(own)) % FOLDS
    return found


def _search(rows: Tensor, labels: Tensor, c: int, held: Any) -> tuple[float, dict[float, float]]:
    """The penalty with the best accuracy on the rows held out, then the least loss; and the accuracy of each tried."""
    if held is None:
        fold = torch.from_numpy(folds(labels.cpu().numpy())).to(rows.device)
        parts = [fold == k for k in range(FOLDS)]
        parts = parts[:1] if int(parts[0].sum()) >= ENOUGH else [part for part in parts if part.any()]
    else:
        parts = [torch.as_tensor(held, device=rows.device)]
        if parts[0].shape != labels.shape or parts[0].dtype != torch.bool:
            raise ValueError(f"held must be ({len(labels)},) bool, not {tuple(parts[0].shape)} {parts[0].dtype}")
        parts = [part for part in parts if part.any() and len(labels[~part].unique()) == c]
    if not parts:
        return WITHOUT_SEARCH, {}
    grid = np.logspace(-6, 2, GRID).tolist()
    found: dict[int, tuple[float, float]] = {}
    starts: list[tuple[Tensor, Tensor] | None] = [None] * len(parts)
    asked = sum(int(part.sum()) for part in parts)

    def look(places: Sequence[int]) -> int:
        for place in sorted(set(places) - set(found), reverse=True):  # from stiff to loose: each starts at the last
            right = loss = 0.0
            for k, part in enumerate(parts):
                starts[k] = weight, bias = _solve(
                    rows[~part], labels[~part], c, grid[place], starts[k], WHILE_SEARCHING
                )
                scores = rows[part] @ weight.T + bias
                right += float((class_ranks(scores, labels[part])[0] == 1).sum())
                loss += torch.nn.functional.cross_entropy(scores, labels[part], reduction="sum").item()
            found[place] = right / asked, -loss
        return max(found, key=lambda place: (found[place], place))

    best = look(range(0, GRID, COARSE))
    step = COARSE // 2
    while step >= FINE:
        best = look([max(best - step, 0), min(best + step, GRID - 1)])
        step //= 2
    return grid[best], {grid[place]: found[place][0] for place in sorted(found)}


def _solve(
    rows: Tensor,
    labels: Tensor,
    c: int,
    penalty: float,
    start: tuple[Tensor, Tensor] | None = None,
    iterations: int = MOST_ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """Weight (c, d) and bias (c,) at the least mean cross-entropy + penalty / 2 · ‖W‖², or where the iterations end."""
    n, d = rows.shape
    weight, bias = (rows.new_zeros(c, d), rows.new_zeros(c)) if start is None else (start[0].clone(), start[1].clone())
    double = rows.dtype == torch.float64
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-8 if double else 2e-6,
        tolerance_change=0 if double else 1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        """The loss, and its gradients where the optimizer looks for them: two products, without a graph."""
        of_weight, of_bias = penalty * weight, torch.zeros_like(bias)
        total = penalty / 2 * weight.double().square().sum()
        for some, own in zip(rows.split(ROWS), labels.split(ROWS), strict=True):
            log_share = torch.log_softmax(some @ weight.T + bias, dim=1)  # (m, c)
            total -= log_share.gather(1, own[:, None]).sum(dtype=torch.float64) / n
            slope = log_share.exp_()
            slope[torch.arange(len(own), device=own.device), own] -= 1
            of_weight += slope.T @ some / n
            of_bias += slope.sum(0) / n
        weight.grad, bias.grad = of_weight, of_bias
        return total

    with torch.autocast(rows.device.type, enabled=False):
        optimizer.step(loss)
    return weight, bias


def _checked(rows: Any, labels: Any) -> tuple[Tensor, Tensor]:
    rows = torch.as_tensor(rows).detach()
    if rows.ndim != 2 or not rows.shape[0]:
        raise ValueError(f"rows must be (n, d) with n at least 1, not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold numbers that are not finite")
    rows = rows if rows.dtype == torch.float64 else rows.float()
    labels = torch.as_tensor(labels, device=rows.device)
    if labels.shape != rows.shape[:1] or labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"labels must be ({len(rows)},) whole numbers from 0, not {tuple(labels.shape)} {labels.dtype}"
        )
    return rows, labels.long()
