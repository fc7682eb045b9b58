"""A line plot as a picture that lies in the page itself: SVG, once for a light page and once for a dark one.

No word of the data is in it, numbers alone: what the lines are called stands in the page, as text.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from xmodal.report.history import Series
from xmodal.report.names import minus

POINTS = 160  # of a line; a plot is some 400 pixels wide
INCHES = 4.0, 2.1
# Okabe and Ito 2008, "Color Universal Design": told apart by people of any colour vision; black is left to the text.
TONES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TONES_IN_THE_DARK = ("#5eb3ea", "#f2894a", "#35c79c", "#e3a3c8", "#f0bb4a", "#9ad4f5")
PAPER = {"text": "#5c6470", "grid": "#e4e7eb"}
PAPER_IN_THE_DARK = {"text": "#9aa4b2", "grid": "#2f363f"}


@dataclass(frozen=True)
class Line:
    """Points (n,), and with `low` and `high` a band around them; tone: its place among TONES."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    tone: int = 0
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Picture:
    """Two data URIs of one picture."""

    light: str
    dark: str


def thinned(series: Series, tone: int = 0, dashed: bool = False) -> Line:
    """A series as a line of at most POINTS means over stretches of steps, its band from the least to the greatest."""
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    if len(steps) <= POINTS:
        return Line(steps, values, tone=tone, dashed=dashed, dots=len(steps) < 3)
    cuts = np.linspace(0, len(steps), POINTS + 1).astype(int)[:-1]
    size = np.diff(np.append(cuts, len(steps)))
    return Line(
        np.add.reduceat(steps, cuts) / size,
        np.add.reduceat(values, cuts) / size,
        np.minimum.reduceat(values, cuts),
        np.maximum.reduceat(values, cuts),
        tone,
        dashed,
    )


def draw(lines: Sequence[Line], percent: bool = False, from_zero: bool = False) -> Picture:
    """The lines in one plot. percent: values are fractions and are shown ×100; from_zero: the axis begins at 0."""
    return Picture(
        _svg(lines, percent, from_zero, TONES, PAPER),
        _svg(lines, percent, from_zero, TONES_IN_THE_DARK, PAPER_IN_THE_DARK),
    )


def _svg(lines: Sequence[Line], percent: bool, from_zero: bool, tones: Sequence[str], paper: dict[str, str]) -> str:
    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.fonttype": "none",  # text stays text: a third of the size, and as sharp as the page
        "svg.hashsalt": "xmodal",  # the same figures give the same bytes
        "text.color": paper["text"],
        "xtick.labelcolor": paper["text"],
        "ytick.labelcolor": paper["text"],
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the browser's fonts count, not those that matplotlib misses
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            color = tones[line.tone % len(tones)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.2, linewidth=0)
            style = {"linestyle": (0, (4, 3)) if line.dashed else "-", "marker": "o" if line.dots else None}
            axes.plot(line.x, line.y, color=color, linewidth=1.6, markersize=4, **style)
        axes.spines[:].set_visible(False)
        axes.grid(axis="y", color=paper["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y * 100 if percent else y)))
        if from_zero:
            axes.set_ylim(bottom=0)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _short(value: float) -> str:
    """A number as a tick has it: 0.002, 1.5, 20k, 3e−05."""
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e7):
        power = math.floor(math.log10(size))
        return minus(f"{round(value / 10**power, 2):g}e{power}")
    return minus(f"{value / 1000:g}k" if size >= 10_000 else f"{value:.6g}")
