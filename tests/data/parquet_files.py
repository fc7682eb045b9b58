"""Small parquet files of pictures, and what a source made of them says: for the tests of tables far away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from tests.data.test_hf_pictures import png

KINDS = ["cat", "hot_dog"]
GROUP = 4  # rows


def table(path: Path, values: range, captions: list[Any] | None = None, bad: Sequence[int] = (), **more: Any) -> Path:
    """Rows in groups of GROUP: a picture as red as its value, a caption that ends with it, a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"image": [{"bytes": b"<html>" if value in bad else png(value), "path": None} for value in values]}
    told |= {"caption": captions or [f"number {value}" for value in values], "label": [value % 2 for value in values]}
    rows = datasets.Dataset.from_dict({**told, **more}).cast_column("image", datasets.Image())
    rows.cast_column("label", datasets.ClassLabel(names=KINDS)).to_parquet(path, batch_size=GROUP)
    return path


def told(source: Any) -> list[list[str]]:
    return [list(source.texts(row)) for row in range(len(source))]


def reds(source: Any, rows: Any) -> list[int]:
    return [int(np.asarray(picture)[0, 0, 0]) for picture in source.images(np.array(rows))]
