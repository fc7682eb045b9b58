"""What metrics.jsonl tells of a run's course."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Series:
    """A figure over the steps: steps (n,) in their order, values (n,) float, NaN where it was not finite."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The last value that is finite; NaN if none is."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else math.nan


@dataclass(frozen=True)
class Warned:
    """What a guard warned of, as it said it last, and after which steps."""

    text: str
    steps: tuple[int, ...]


@dataclass(frozen=True)
class History:
    """training: figures of each optimizer step; evaluation: scores by name; skipped: steps that changed nothing.

    warnings: in the order in which they first came, those from before a run was resumed among them.
    """

    training: dict[str, Series]
    evaluation: dict[str, Series]
    steps: int
    skipped: int
    warnings: tuple[Warned, ...] = ()


def read_history(path: Path) -> History:
    """The history in a metrics.jsonl; empty where there is no such file. Lines that are torn are passed over."""
    training: dict[str, list[tuple[int, float]]] = {}
    evaluation: dict[str, list[tuple[int, float]]] = {}
    warnings: dict[str, Warned] = {}
    last = skipped = 0
    for line in _lines(path):
        step = line.pop("step")
        last = max(last, step)
        skipped += "skipped_step" in line
        if isinstance(text := line.get("warning"), str):
            same = re.sub(r"\d[\d.,]*", "#", text)  # but for its figures
            before = warnings[same].steps if same in warnings else ()
            warnings[same] = Warned(text, (*before, step))
        into = training if "loss" in line else evaluation
        for name, value in line.items():
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                into.setdefault(name, []).append((step, math.nan if value is None else float(value)))
    return History(_series(training), _series(evaluation), last, skipped, tuple(warnings.values()))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the end of a run that was killed
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield line


def _series(points: dict[str, list[tuple[int, float]]]) -> dict[str, Series]:
    found = {}
    for name, pairs in points.items():
        pairs = sorted(dict(pairs).items())  # a step that was done again after a resume counts as it ended
        values = np.array([value for _, value in pairs])
        found[name] = Series(np.array([step for step, _ in pairs]), np.where(np.isfinite(values), values, np.nan))
    return found
