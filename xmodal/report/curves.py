"""The plots of a report: how training went, how scores grew, and a scan between two models' weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal.evaluators.units import is_shown_as_it_is
from xmodal.report.history import History
from xmodal.report.names import number, parse, words
from xmodal.report.plot import Line, Picture, draw, thinned

# What training writes in each step, in the order of the page; whatever else a method writes comes after them.
TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "scale": "Scale (1 / temperature)",
    "grad_norm": "Norm of the gradient, before clipping",
    "pairs_per_second": "Pairs a second",
}
MOST_PANELS = 12  # of a kind; a method that writes more has its own way to look at them
MOST_LINES = 6  # of a panel: as many as there are tones


@dataclass(frozen=True)
class Key:
    """A line of a legend."""

    tone: int
    name: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A plot with its title, a few words on it, and what its lines are called."""

    title: str
    picture: Picture
    note: str = ""
    legend: tuple[Key, ...] = ()


def training_panels(history: History) -> list[Panel]:
    """A panel for each figure that has a finite value; the loss has its floor in the same one."""
    figures = {name: s for name, s in history.training.items() if not math.isnan(s.last)}
    floor = figures.pop("floor", None) if "loss" in figures else None
    order = [*(n for n in TITLES if n in figures), *(n for n in figures if n not in TITLES)]
    panels = []
    for name in order[:MOST_PANELS]:
        series = figures[name]
        lines, legend = [thinned(series)], ()
        if name == "loss" and floor is not None:
            lines.append(thinned(floor, tone=1, dashed=True))
            legend = (
                Key(0, "loss"),
                Key(1, "floor: the least it can be, given the equal images and captions of a batch", True),
            )
        title = TITLES.get(name, words(name))
        from_zero = name in ("loss", "grad_norm", "pairs_per_second", "lr")
        panels.append(Panel(title, draw(lines, from_zero=from_zero), f"at the end {number(series.last)}", legend))
    return panels


def score_panels(
    history: History, now: Mapping[str, Mapping[str, float]], then: Mapping[str, Mapping[str, float]]
) -> list[Panel]:
    """First-place scores over the steps, if the run was evaluated on its way; `then` is step 0, `now` the last one."""
    points: dict[str, list[tuple[int, float]]] = {}
    for name, series in history.evaluation.items():
        if parse(name).is_first_place:
            pairs = {int(s): float(v) for s, v in zip(series.steps, series.values, strict=True)}
            for step, scores in ((0, then), (history.steps, now)):
                value = scores.get(name, {}).get("value")
                if value is not None:
                    pairs[step] = value
            points[name] = sorted(pairs.items())
    return _by_figure(points, "step")


def scan_panels(scan: Mapping[float, Mapping[str, Any]]) -> list[Panel]:
    """Scores over alpha: 0 is the model before training, 1 the trained one, between them their weights' mixture."""
    points: dict[str, list[tuple[float, float]]] = {}
    for alpha, scores in sorted(scan.items()):
        for name, score in scores.items():
            value = score["value"] if isinstance(score, Mapping) else score
            points.setdefault(name, []).append((alpha, math.nan if value is None else float(value)))
    first = {name: line for name, line in points.items() if parse(name).is_first_place}
    return _by_figure(first or points, "alpha")


def _by_figure(points: Mapping[str, Sequence[tuple[float, float]]], over: str) -> list[Panel]:
    """A panel for each figure, in it a line for each test."""
    figures: dict[tuple[str, str], dict[str, Sequence[tuple[float, float]]]] = {}
    for name, line in points.items():
        test, direction, figure = parse(name)
        if any(math.isfinite(value) for _, value in line):
            figures.setdefault((direction, figure), {})[test] = line
    panels = []
    for (direction, figure), tests in list(figures.items())[:MOST_PANELS]:
        lines, legend = [], []
        for tone, (test, line) in enumerate(list(tests.items())[:MOST_LINES]):
            x, y = np.array(line, dtype=float).T
            finite = np.isfinite(y)
            lines.append(Line(x[finite], y[finite], tone=tone, dots=True))
            legend.append(Key(tone, words(test)))
        as_it_is = is_shown_as_it_is(figure)
        title = f"{words(direction)} {words(figure)}{'' if as_it_is else ' ×100'}".strip()
        left_out = len(tests) - len(lines)
        note = f"over {over}" + (f"; {left_out} more tests are not drawn" if left_out else "")
        panels.append(Panel(title, draw(lines, percent=not as_it_is), note, tuple(k for k in legend if k.name)))
    return panels
