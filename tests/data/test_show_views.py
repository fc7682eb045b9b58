"""The sheet of views: a picture and rows of views under their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.cli import main
from xmodal.data import show_views
from xmodal.data.show_views import Config, run
from xmodal.errors import InputError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(file)
    return file


@pytest.mark.parametrize(("augment", "kinds"), [("simclr", 1), ("byol", 2), ("swav", 2), ("drawing", 1)])
def test_a_sheet_has_two_rows_of_each_kind(
    augment: str, kinds: int, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict] = []
    whole = show_views._sheet
    monkeypatch.setattr(show_views, "_sheet", lambda p, title, kinds: (told.append(kinds), whole(p, title, kinds))[1])
    output = tmp_path / "deep" / "sheet.png"
    assert main(["data", "views", str(picture), "--augment", augment, "--image-size", "40", "-o", str(output)]) == 0
    assert len(told[0]) == kinds
    seen = [view.tobytes() for views in told[0].values() for view in views]
    assert len(seen) == len(set(seen)) == 16 * kinds
    with Image.open(output) as sheet:
        assert sheet.width == 2 * show_views.MARGIN + 8 * 126 - 6  # a view of 40 pixels is shown three times as large


def test_numbers_are_said(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(show_views, "_sheet", lambda p, title, kinds: told.extend(kinds) or Image.new("RGB", (1, 1)))
    run(Config(image=picture, augment="byol", output=tmp_path / "x.png"))
    assert told == [
        "view 1: 1 of 224 × 224 pixels · area 0.08–1 · jitter 0.8 by 0.4, 0.4, 0.2, 0.1 · grey 0.2 · blur 1",
        "view 2: 1 of 224 × 224 pixels · area 0.08–1 · jitter 0.8 by 0.4, 0.4, 0.2, 0.1 · grey 0.2 · blur 0.1 · "
        "solarise 0.2",
    ]


def test_wrong_input(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone.png"):
        run(Config(image=tmp_path / "gone.png"))
    with pytest.raises(InputError, match="Cannot write"):
        run(Config(image=picture, image_size=16, output=tmp_path / "sheet.what"))
