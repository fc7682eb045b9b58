"""Maps of embeddings: the two directions in which they vary most, as a picture of dots."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from xmodal.report.plot import TONES

MOST_NAMED = 20  # groups with a line in the legend


@dataclass(frozen=True)
class Map:
    """A model's map: a data URI, and how much of the variance of its rows lies in the two directions."""

    model: str
    uri: str
    share: float


def colours(groups: int) -> list[str]:
    """A colour for each group that is told from its neighbours on light and on dark paper."""
    if groups <= len(TONES):
        return list(TONES[:groups])
    if groups <= MOST_NAMED:
        return [to_hex(colormaps["tab10" if groups <= 10 else "tab20"](i)) for i in range(groups)]
    return [to_hex(colormaps["hsv"](0.95 * i / groups)) for i in range(groups)]


def maps(models: Sequence[str], rows: Sequence[Any], group: np.ndarray, groups: int) -> list[Map]:
    """A map for each model of its rows (n, d) of the same items, whose group is a number (n,) below `groups`.

    A map means the same turned or mirrored: each is laid over the first as well as that goes, so that a dot that lies
    elsewhere has moved.
    """
    found = []
    first: np.ndarray | None = None
    tones = colours(groups)
    for model, some in zip(models, rows, strict=True):
        points, share = principal(torch.as_tensor(some))
        if first is None:
            first = points
        else:
            points = points @ turn(points, first)
        found.append(Map(model, _picture(points, [tones[g] for g in group.tolist()]), share))
    return found


def principal(rows: Tensor) -> tuple[np.ndarray, float]:
    """Rows (n, d) -> their places along the two directions of most variance, (n, 2), and the share of it in these."""
    centred = rows.double() - rows.double().mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(rows), 2, dtype=torch.float64)
    points[:, : len(directions[:2])] = centred @ directions[:2].T
    total = sizes.square().sum()
    return points.numpy(), float(sizes[:2].square().sum() / total) if total > 0 else 0.0


def turn(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """The rotation or reflection (2, 2) after which points (n, 2) lie nearest to others (Schönemann 1966)."""
    left, _, right = np.linalg.svd(points.T @ onto)
    return left @ right


def _picture(points: np.ndarray, tones: Sequence[str]) -> str:
    with rc_context({"savefig.dpi": 160}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(3.2, 3.2))
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        axes.scatter(points[:, 0], points[:, 1], s=9 if len(points) > 300 else 22, c=tones, alpha=0.75, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_axis_off()
        file = io.BytesIO()
        figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
