"""What a run says of its data; the rest of it is in the tests of the recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.test_two_processes import write_pairs
from tests.two_processes import QUICK
from xmodal.data.augment import augmentation
from xmodal.data.glyphs import Glyphs
from xmodal.data.table import read_table
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError
from xmodal.run import Run
from xmodal.train.clip import Config
from xmodal.train.clip import run as train


def test_what_the_data_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text("filepath,caption\n0.png,a\n1.png,\n2.png,\n0.png,b\n")
    run = Run("clip", Config(batch_size=1), tmp_path / "run", accelerator=None, resume=None)
    view = augmentation("none", Preparation(8, 8))
    run.batches(read_table(tmp_path / "t.csv"), view, len)
    assert capsys.readouterr().out == f"Left out of {tmp_path / 't.csv'}: 2 with no caption.\n"
    run.batches(Glyphs("unseen_names"), view, len)
    assert capsys.readouterr().out == ""


def test_a_run_goes_on_with_its_own_data_and_settings_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path)
    told: dict[str, Any] = {**QUICK, "data": str(tmp_path / "pairs.csv"), "batch_size": 8, "save_every": 3}
    folder = tmp_path / "run"
    train(Config(output=folder, **told))

    def go_on(**more: Any) -> list[int]:
        shutil.rmtree(folder / "checkpoints" / "step-6")
        train(Config(output=folder, resume=True, **{**told, **more}))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines if "loss" in line]

    assert go_on(workers=1, eval_every=5) == [1, 2, 3, 4, 5, 6]  # which are not the run
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(
        InputError, match=r"other settings: lr 0\.001 -> 0\.002, seed 0 -> 1\.\n.*--allow-changed-config"
    ):
        go_on(lr=0.002, seed=1)
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "checkpoints" / "step-6").mkdir()
    assert go_on(lr=0.002, allow_changed_config=True) == [1, 2, 3, 4, 5, 6]
    assert (folder / "model.safetensors").read_bytes() != before
    assert "Other settings now: lr 0.001 -> 0.002." in capsys.readouterr().out

    with (tmp_path / "pairs.csv").open("a") as table:
        table.write("0.png,one more,train\n39.png,and one,train\n")
    with pytest.raises(InputError, match=r"other data .*: 33 rows instead of 32\.\n.*--allow-changed-data"):
        go_on()
    (folder / "checkpoints" / "step-6").mkdir()
    assert go_on(allow_changed_data=True) == [1, 2, 3, 4, 5, 6]
    assert "33 rows instead of 32" in capsys.readouterr().out
