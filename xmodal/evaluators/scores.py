"""Scores with protocol and interval: the file, and the table that people read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from xmodal.checkpoint import replace_text
from xmodal.errors import InputError

Scores = dict[str, dict[str, float]]  # name -> value, low, high


def write_scores(path: str | Path, protocol: dict[str, Any], scores: Scores) -> None:
    """{"protocol": {…}, "scores": {name: {"value", "low", "high"}}}; figures are fractions, ranks are ranks."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"protocol": protocol, "scores": scores}, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def print_table(protocol: dict[str, Any], scores: Scores) -> None:
    """Each score ×100 with its interval (ranks as they are), then the protocol."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, score in scores.items():
        factor = 1 if name.endswith("_rank") else 100
        value, low, high = (f"{score[k] * factor:.1f}" for k in ("value", "low", "high"))
        table.add_row(Text(plain(name)), value, f"{low} – {high}")
    console.print(table)
    for name, said in protocol.items():
        console.print(Text(f"{plain(name)}: {plain(said)}", style="dim"), soft_wrap=True)


def plain(value: Any) -> str:
    """Data as text for a terminal: no control characters, which could move its cursor or write its title."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", " ", str(value))
