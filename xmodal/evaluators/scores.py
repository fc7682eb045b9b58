"""Scores with protocol and interval: the file, and the table that people read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmodal.durable import replace_text
from xmodal.errors import InputError
from xmodal.evaluators.units import is_shown_as_it_is, shown
from xmodal.evaluators.zeroshot import per_class

Scores = dict[str, dict[str, float]]  # name -> value, low, high


def write_scores(path: str | Path, protocol: dict[str, Any], scores: Scores, **more: Any) -> None:
    """{"protocol": {…}, "scores": {name: {"value", "low", "high"}}}; figures are fractions, ranks are ranks.

    more: further keys, such as the figures of each class. What isn't finite becomes null: JSON has no NaN.
    Raises InputError where the file can't be written.
    """
    write_json(path, {"protocol": protocol, "scores": scores, **more})


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write figures, the folder included; what isn't finite becomes null. InputError where it can't be done."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair stands for a byte of a file's name that is no UTF-8; it can't be written.
        replace_text(path, re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def print_table(protocol: dict[str, Any], scores: Scores) -> None:
    """What was asked in a row, its figures in columns: ×100 (ranks as they are), the first with its interval."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, score in scores.items():
        question, _, figure = name.rpartition("/")
        rows.setdefault(question, {})[figure] = score
    for figures in dict.fromkeys(tuple(row) for row in rows.values()):
        table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
        table.add_column("×100" if not all(map(is_shown_as_it_is, figures)) else "", no_wrap=True)
        for figure in figures:
            table.add_column(figure.replace("_", " "), justify="right", no_wrap=True)
        for question, row in rows.items():
            if tuple(row) == figures:
                question = plain(question.replace("_", " ").replace("/", ", "))
                table.add_row(
                    Text(question), *(_cell(*figure, interval=i == 0) for i, figure in enumerate(row.items()))
                )
        # A terminal wraps what is wider than it is; a figure or a name that is cut short is worse.
        Console(highlight=False, width=Console(width=10_000).measure(table).maximum).print(table)
    print_protocol(protocol)


def print_protocol(protocol: dict[str, Any]) -> None:
    """A line for each thing that a figure depends on."""
    console = Console(highlight=False)
    for line in _lines(protocol):
        console.print(Text(line, style="dim"), soft_wrap=True)


def print_classes(names: Sequence[str], confusion: np.ndarray) -> None:
    """Precision, recall and F1 of each class, and what it is taken for most often."""
    figures = per_class(confusion)
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    for column, side in (("class", "left"), ("images", "right"), ("precision", "right"), ("recall", "right"),
                         ("F1", "right"), ("taken for", "left")):  # fmt: skip
        table.add_column(column, justify=side)  # pyright: ignore[reportArgumentType]
    for i, name in enumerate(names):
        wrong = confusion[i].copy()
        wrong[i] = 0
        taken = f"{plain(names[int(wrong.argmax())])} ({int(wrong.max())})" if wrong.max() else ""
        numbers = (f"{figures[f][i] * 100:.1f}" for f in ("precision", "recall", "f1"))
        table.add_row(Text(plain(name)), str(int(figures["support"][i])), *numbers, Text(taken))
    Console(highlight=False).print(table)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(name: str, score: dict[str, float], interval: bool) -> str:
    value, low, high = (shown(name, score[k]) for k in ("value", "low", "high"))
    return f"{value} \\[{low}, {high}]" if interval else value


def _lines(protocol: dict[str, Any], indent: str = "") -> Iterator[str]:
    for name, said in protocol.items():
        if isinstance(said, dict):
            yield f"{indent}{plain(name)}"
            yield from _lines(said, indent + "  ")
        else:
            yield f"{indent}{plain(name)}: {plain(said)}"


def plain(value: Any) -> str:
    """Data as text for a terminal: no control characters, which could move its cursor or write its title."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", " ", str(value))
