"""What image recipes share: sizes, classes that must be there, batches by class."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data.pictures import open_pictures
from xmodal.encoders.image import open_image_encoder
from xmodal.errors import InputError
from xmodal.pretrain import open_encoder, view_batches, with_classes_only
from xmodal.train.simclr import Config


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eleven pictures: four of one class, four of another, one alone in its class, two without."""
    for i in range(11):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    kinds = [*"aaaabbbbc", "", ""]
    lines = ["filepath,label", *(f"{i}.png,{kind}" for i, kind in enumerate(kinds))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def test_only_pictures_with_a_class(table: Path, capsys: pytest.CaptureFixture) -> None:
    found = with_classes_only(open_pictures(str(table)), "SupCon")
    assert found.labels is not None
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2]
    assert "2 pictures without a class" in capsys.readouterr().out
    assert with_classes_only(found, "SupCon") is found
    table.write_text("filepath\n0.png\n")
    with pytest.raises(InputError, match="SupCon learns from classes, and .*t.csv has none"):
        with_classes_only(open_pictures(str(table)), "SupCon")


def test_batches_by_class(table: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = open_pictures(str(table))
    this: Any = SimpleNamespace(share=lambda pictures: {"batch": 4, "part": (0, 4)})
    encoder = open_image_encoder("small", 16)
    batch, _ = view_batches(Config(data="x"), this, pictures, encoder, "simclr", k=2)[0]
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    said = capsys.readouterr().out
    assert "2 with no class" in said
    assert "1 with no other picture of their class" in said
    at_random = view_batches(Config(data="x", augment="none"), this, pictures, encoder, "simclr")
    assert at_random.steps_per_epoch == 2
    assert torch.equal(at_random[0][0]["views"][:, 0], at_random[0][0]["views"][:, 1])


@pytest.mark.parametrize(("photographs", "side", "expected"), [(True, 500, 64), (True, 32, 32), (False, 500, 32)])
def test_the_size_that_small_takes(photographs: bool, side: int, expected: int) -> None:
    picture = np.zeros((side, side + 9, 3), np.uint8)

    class Blank:
        def __len__(self) -> int:
            return 5

        def images(self, rows: np.ndarray) -> list[np.ndarray]:
            return [picture for _ in rows]

    pictures: Any = Blank()
    pictures.photographs = photographs
    assert open_encoder(Config(model="small"), pictures).preparation.height == expected
    assert open_encoder(Config(model="small", image_size=48), pictures).preparation.height == 48
