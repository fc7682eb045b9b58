"""What a run says of its data; the rest of it is in the tests of the recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from xmodal.data.augment import augmentation
from xmodal.data.glyphs import Glyphs
from xmodal.data.table import read_table
from xmodal.encoders.preparation import Preparation
from xmodal.run import Run
from xmodal.train.clip import Config


def test_what_the_data_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text("filepath,caption\n0.png,a\n1.png,\n2.png,\n0.png,b\n")
    run = Run("clip", Config(batch_size=1), tmp_path / "run", accelerator=None, resume=None)
    view = augmentation("none", Preparation(8, 8))
    run.batches(read_table(tmp_path / "t.csv"), view, len)
    assert capsys.readouterr().out == f"Left out of {tmp_path / 't.csv'}: 2 with no caption.\n"
    run.batches(Glyphs("unseen_names"), view, len)
    assert capsys.readouterr().out == ""
