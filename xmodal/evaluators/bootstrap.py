"""Intervals for scores: queries are resampled, the gallery and the model stay as they are.

The interval says how much the score would move with other queries of the same kind. It holds no variance of training:
that takes several seeds. Queries that share an image (its five captions) are resampled together, since they are not
independent.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from xmodal.evaluators.sts import Ranks, correlations, spearman

RESAMPLES = 1000
LEVEL = 0.95

Score = dict[str, float]  # value, low, high


def mean_score(
    values: np.ndarray, groups: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Score:
    """The mean of values (n,) with its percentile interval (Efron 1979); groups (n,) are resampled whole."""
    sums, counts = _by_group(values, groups)
    means = np.concatenate([(times @ sums) / (times @ counts) for times in _draws(len(sums), resamples, seed)])
    return _score(float(values.mean()), means)


def median_score(
    values: np.ndarray, groups: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Score:
    """The median of values (n,) with its percentile interval; of an even number, the upper of the two in the middle."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    of_group = _groups(values, groups)[order]
    medians = []
    for times in _draws(of_group.max() + 1, resamples, seed):
        until = np.cumsum(times[:, of_group], axis=1)  # (some, n), queries in the order of their values
        medians.append(ordered[(until <= until[:, -1:] / 2).sum(1)])
    return _score(float(np.median(values)), np.concatenate(medians))


def statistic_score(
    statistic: Callable[[np.ndarray], float],
    n: int,
    groups: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """A statistic of how often (n,) each query counts, such as a macro F1, with its percentile interval."""
    of_group = _groups(np.empty(n), groups)
    drawn = (row for times in _draws(of_group.max() + 1, resamples, seed) for row in times)
    return _score(statistic(np.ones(n)), np.array([statistic(times[of_group]) for times in drawn]))


def spearman_score(predicted: np.ndarray, gold: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """Spearman of predictions (n,) with gold scores (n,), with its percentile interval; pairs are resampled.

    Raises ValueError as `sts.spearman` does.
    """
    return _score(spearman(predicted, gold), _spearmans([predicted], gold, resamples, seed)[0])


def compare_spearman(
    sets: Mapping[str, tuple[Sequence[np.ndarray], np.ndarray]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[dict[str, Score]], list[dict[str, Score]]]:
    """Spearman of each of m models on each set and, of several sets, their "average"; and how far each model but the
    first is above the first, (m − 1).

    sets: by name, the models' predictions, m of (n,), and the gold scores (n,). Each set is resampled by itself, with
    draws that depend on its name alone; all models see the same resamples, so that a difference is a paired one: what
    makes a resample hard for both falls out of it.
    """
    values, drawn = {}, {}
    for name, (predicted, gold) in sets.items():
        values[name] = np.array([spearman(p, gold) for p in predicted])  # (m,)
        drawn[name] = _spearmans(predicted, gold, resamples, (seed, zlib.crc32(name.encode())))  # (m, resamples)
    if len(sets) > 1:
        values["average"] = np.mean(list(values.values()), axis=0)
        drawn["average"] = np.mean(list(drawn.values()), axis=0)
    models = range(len(next(iter(values.values()), ())))
    scores = [{name: _score(float(values[name][i]), drawn[name][i]) for name in values} for i in models]
    differences = [
        {name: _score(float(values[name][i] - values[name][0]), drawn[name][i] - drawn[name][0]) for name in values}
        for i in models[1:]
    ]
    return scores, differences


def _spearmans(
    predicted: Sequence[np.ndarray], gold: np.ndarray, resamples: int, seed: int | tuple[int, ...]
) -> np.ndarray:
    """m predictions (n,) in the same resamples, (m, resamples); 0 where a resample has one value alone."""
    ranks, of_gold = [Ranks(p) for p in predicted], Ranks(gold)
    blocks = [
        np.stack([correlations(r, of_gold, times) for r in ranks]) for times in _draws(len(gold), resamples, seed)
    ]
    return np.concatenate(blocks, axis=1)


def _groups(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    return np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]


def _by_group(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    numbers = _groups(values, groups)
    return np.bincount(numbers, weights=values), np.bincount(numbers).astype(np.float64)


def _draws(n: int, resamples: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """How often each of n groups is in a resample, some resamples at a time: (some, n)."""
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 2_000_000 // n))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picked = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _score(value: float, resampled: np.ndarray) -> Score:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)}
