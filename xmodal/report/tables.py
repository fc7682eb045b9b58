"""Tables of scores: what was asked in a row, its figures in columns; or before and after in columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xmodal.evaluators import bootstrap
from xmodal.evaluators.retrieval import hits
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.units import shown
from xmodal.report.gallery import Direction
from xmodal.report.names import ScoreName, minus, parse, words


@dataclass(frozen=True)
class Cell:
    """A figure as it is read; low and high in per cent of the table's scale, for a bar, or None without one."""

    value: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None  # low, value, high


@dataclass(frozen=True)
class Table:
    figures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Change:
    """verdict: "better" or "worse" where the interval of the difference leaves out 0, else ""."""

    figure: str
    before: Cell
    after: Cell
    difference: Cell
    verdict: str = ""


def score_tables(scores: Scores) -> list[Table]:
    """Questions that have the same figures share a table."""
    questions: dict[str, dict[str, Cell]] = {}
    for name, score in scores.items():
        parsed = parse(name)
        questions.setdefault(parsed.question, {})[words(parsed.figure)] = _cell(parsed, score)
    return [
        Table(figures, tuple((q, tuple(row.values())) for q, row in questions.items() if tuple(row) == figures))
        for figures in dict.fromkeys(tuple(row) for row in questions.values())
    ]


def first_places(scores: Scores, most: int = 6) -> list[tuple[str, str, Cell]]:
    """The figures that stand for a run: question, figure, value."""
    parsed = [(parse(name), score) for name, score in scores.items()]
    return [(p.question, words(p.figure), _cell(p, s)) for p, s in parsed if p.is_first_place][:most]


def changes(before: Scores, after: Scores, paired: Scores) -> list[tuple[str, list[Change]]]:
    """What was asked, and each of its figures before and after; paired: differences with their intervals, if known."""
    questions: dict[str, list[Change]] = {}
    for name, score in after.items():
        parsed, then = parse(name), before.get(name, {})
        known = paired.get(name) or _difference(then, score)
        questions.setdefault(parsed.question, []).append(
            Change(
                words(parsed.figure),
                _cell(parsed, then),
                _cell(parsed, score),
                _cell(parsed, known, signed=True),
                _verdict(parsed, known),
            )
        )
    return list(questions.items())


def paired_differences(
    test: str, then: Mapping[str, Direction], now: Mapping[str, Direction], scores: Scores
) -> Scores:
    """After minus before of the same queries, resampled together with their images, for those of `scores` of a test.

    Two intervals that overlap may hide a difference that is sure: most queries are as hard before as after.
    """
    found = {}
    for name in scores:
        parsed = parse(name)
        if parsed.test != test or parsed.direction not in now:
            continue
        old, new = then[parsed.direction].rank, now[parsed.direction].rank
        groups = now["text_to_image"].first_right if parsed.direction == "text_to_image" else None
        if k := re.fullmatch(r"R@(\d+)", parsed.figure):
            found[name] = bootstrap.mean_score(hits(new, int(k[1])) - hits(old, int(k[1])), groups)
        elif parsed.figure == "mean_rank":
            found[name] = bootstrap.mean_score(new.astype(float) - old, groups)
    return found


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    old, new = before.get("value"), after.get("value")
    return {"value": None if old is None or new is None else new - old}


def _verdict(name: ScoreName, difference: Mapping[str, Any]) -> str:
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or not low * high > 0:
        return ""
    return "better" if (low > 0) != name.is_shown_as_it_is else "worse"


def _cell(name: ScoreName, score: Mapping[str, Any], signed: bool = False) -> Cell:
    value, low, high = (score.get(key) for key in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return Cell("–")

    def told(x: float) -> str:
        return minus(shown(name.figure, x, signed))

    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Cell(told(value))
    bar = (
        None
        if name.is_shown_as_it_is or signed
        else tuple(round(min(max(x, 0), 1) * 100, 1) for x in (low, value, high))
    )
    return Cell(told(value), f"{told(low)} … {told(high)}" if signed else f"{told(low)} – {told(high)}", bar)
