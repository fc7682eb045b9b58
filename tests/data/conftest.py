"""What the tests of tables share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, 0.png to 3.png."""
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a text to a file of the folder, byte for byte: written(text, name="t.csv") -> its path."""

    def write(text: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write
