"""A matrix of cosines as a picture, with the texts beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from xmodal.errors import InputError
from xmodal.evaluators.scores import plain
from xmodal.report.names import minus

MOST_NAMED = 60  # rows or columns whose texts can be read
MOST_FIGURES = 16  # rows or columns whose cosines stand in their cells
LETTERS = 40  # of a text


def write_heat_map(path: Path, left: Sequence[str], top: Sequence[str], cosines: np.ndarray) -> None:
    """cosines: (n, m) of the texts at the left (n) and those below (m). PNG or SVG, by the name's end.

    The colours go from the least to the greatest cosine. Raises InputError where the file can't be written.
    """
    n, m = cosines.shape
    cell = 0.62 if max(n, m) <= MOST_FIGURES else 0.24 if max(n, m) <= MOST_NAMED else 6 / max(n, m)
    words: Any = {"parse_math": False}  # a dollar sign in a text is a dollar sign
    settings: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "xmodal", "savefig.dpi": 160}
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a letter that the font hasn't is drawn as a box
        figure = Figure(figsize=(4.2 + m * cell, 2.6 + n * cell), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(cosines, cmap="Blues", aspect="equal")
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2.5 / (n * cell)), pad=0.02)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_label("cosine")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(*_ticks(left), **words)
        axes.set_xticks(*_ticks(top), rotation=40, ha="right", rotation_mode="anchor", **words)
        if max(n, m) <= MOST_FIGURES:
            low, high = float(cosines.min()), float(cosines.max())
            for (i, j), value in np.ndenumerate(cosines):
                deep = value > low + 0.6 * (high - low)
                said = minus(f"{value:.2f}")
                axes.text(j, i, said, ha="center", va="center", color="white" if deep else "#1b1f24", fontsize=8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def _ticks(names: Sequence[str]) -> tuple[range | list[int], list[str]]:
    if len(names) > MOST_NAMED:
        return [], []
    return range(len(names)), [plain(name if len(name) <= LETTERS else name[: LETTERS - 1] + "…") for name in names]
