"""How much better one model is than another on the same items, and how sure that is.

Both answer the same queries, and most queries are as hard for one as for the other: that falls out of a difference that
is taken query by query. Two intervals that overlap may hide a difference that is sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal.evaluators import bootstrap
from xmodal.evaluators.embed import Embedded
from xmodal.evaluators.probes import Answers
from xmodal.evaluators.retrieval import hits, ranks
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.zeroshot import confusion, macro

MACRO = ("macro_precision", "macro_recall", "macro_f1")


def mcnemar(first: Any, second: Any) -> dict[str, float]:
    """{"only_first", "only_second", "p"}: which of the same items (n,) one of both has right, the other not.

    p is the exact two-sided one (McNemar 1947, by the binomial distribution): how often a coin, thrown for each item of
    which one alone is right, would come out as unequal or more so. 1 where there is none.

    It says whether two models differ, not by how much: of enough items any difference is sure.
    Raises ValueError for shapes that don't match.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"first and second must both be (n,), not {first.shape} and {second.shape}")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = b + c, min(b, c)
    k = np.arange(1, fewer + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])  # ln C(n, k), k = 0 … fewer
    tail = math.exp(min(0.0, np.logaddexp.reduce(ways) - n * math.log(2)))
    return {"only_first": b, "only_second": c, "p": min(1.0, 2 * tail)}


def compare_classes(
    answers: Sequence[Answers], own: np.ndarray, c: int
) -> tuple[list[Scores], list[Scores], list[dict[str, float]]]:
    """Of each of m models its scores; of each but the first how far it is above the first, and McNemar of top1.

    answers: to the same pictures, of classes own (n,) out of c.
    """
    scores: list[Scores] = [{} for _ in answers]
    apart: list[Scores] = [{} for _ in answers[1:]]
    for k in (1, 5) if c > 5 else (1,):
        _fill(f"top{k}", [hits(one.rank, k) for one in answers], None, scores, apart)

    def means(which: Sequence[int], name: str) -> bootstrap.Score:
        """Of one model, or of one less another."""

        def statistic(times: np.ndarray) -> float:
            first, *rest = (macro(confusion(own, answers[i].predicted, c, times))[name] for i in which)
            return first - sum(rest)

        return bootstrap.statistic_score(statistic, len(own))

    for name in MACRO:
        for i in range(len(answers)):
            scores[i][name] = means([i], name)
            if i:
                apart[i - 1][name] = means([i, 0], name)
    tests = [mcnemar(answers[0].rank == 1, other.rank == 1) for other in answers[1:]]
    return scores, apart, tests


def compare_retrieval(
    embedded: Sequence[Embedded], ks: Sequence[int] = (1, 5, 10)
) -> tuple[list[Scores], list[Scores]]:
    """Of each of m models its scores as `evaluate.score_retrieval` has them, and of each but the first the differences.

    embedded: of the same pictures and texts.
    """
    found = [ranks(each.image, each.text, each.pairs) for each in embedded]  # of images among texts, and the reverse
    scores: list[Scores] = [{} for _ in found]
    apart: list[Scores] = [{} for _ in found[1:]]
    for direction, groups, rank in zip(
        ("image_to_text", "text_to_image"), (None, embedded[0].first_image), zip(*found, strict=True), strict=True
    ):
        for k in ks:
            _fill(f"{direction}/R@{k}", [hits(one, k) for one in rank], groups, scores, apart)
        _fill(f"{direction}/mean_rank", [one.astype(float) for one in rank], groups, scores, apart)
    return scores, apart


def said(
    first: str, second: str, figure: str, difference: bootstrap.Score, test: dict[str, float] | None = None
) -> str:
    """One difference as a sentence: "B is better than A by 1.3 points in top1 (95 % interval 0.4 to 2.2)"."""
    value, low, high = (100 * difference[end] for end in ("value", "low", "high"))
    sign = 1 if value >= 0 else -1
    ends = sorted((sign * low, sign * high)) if low * high > 0 else [low, high]
    interval = f"{100 * bootstrap.LEVEL:g} % interval {ends[0]:.1f} to {ends[1]:.1f}"
    if test is not None:
        p = f"p {test['p']:.2g}" if test["p"] >= 1e-4 else "p below 0.0001"
        alone = f"{second} alone is right on {test['only_second']:,}, {first} alone on {test['only_first']:,}"
        interval += f"; McNemar's test {p}: {alone}"
    if low * high > 0:
        better, worse = (second, first) if sign > 0 else (first, second)
        return f"{better} is better than {worse} by {abs(value):.1f} points in {figure} ({interval})."
    return f"{second} is not surely better or worse than {first} in {figure}: {value:+.1f} points ({interval})."


def _fill(
    name: str, values: Sequence[np.ndarray], groups: np.ndarray | None, scores: list[Scores], apart: list[Scores]
) -> None:
    """The mean of each model's values (n,), and of what the others' are above the first's."""
    for i, of_model in enumerate(values):
        scores[i][name] = bootstrap.mean_score(of_model, groups)
        if i:
            apart[i - 1][name] = bootstrap.mean_score(of_model - values[0], groups)
