"""What the tests of tables share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Caches of the test's own, no pause before a read is tried again, windows of few row groups."""
    from xmodal.data import remote_files, row_groups, table_names

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(remote_files, "PAUSE", 0.0)
    monkeypatch.setattr(row_groups, "WINDOW", 1)  # bytes: so FEWEST row groups
    table_names._found.cache_clear()
    yield tmp_path / "cache" / "xmodal"
    table_names._found.cache_clear()
