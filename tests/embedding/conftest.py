from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.encoders import hubs


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder whose rows are not unit by themselves, with prompts."""
    return f"st:{hubs.sentence_transformer(tmp_path_factory.mktemp('hub') / 'st', normalize=False)}"


@pytest.fixture(scope="session")
def dual(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{hubs.clip(tmp_path_factory.mktemp('hub') / 'clip')}"


def pictures(folder: Path, n: int = 10) -> Path:
    """Files 0.png, 1.png, … of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder
