"""What tests share: a process that forks others, and pictures for the image recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks children that have everything imported."""
    process = Forks(tmp_path_factory.mktemp("forks"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of twelve pictures each, of a colour of their own in noise."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, kind in enumerate(("red", "green", "blue")):
        (folder / kind).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture
def picture_pairs(tmp_path: Path) -> Path:
    """A table of fourteen pictures to train on and six to judge on, each with a caption."""
    rng = np.random.default_rng(0)
    lines = ["filepath\ttitle\tsplit"]
    for n in range(20):
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png\tpicture number {n}\t{'train' if n < 14 else 'val'}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.tsv"
