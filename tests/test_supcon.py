"""The SupCon recipe: its loss, its two stages, classes with one picture, labels that aren't there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import xmodal
from tests.recipe_cases import B, classes, encoder
from xmodal.cli import main
from xmodal.config import parse
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.train.supcon import PRESETS, Config, run, supcon

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 12, "steps": 2, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25},
}


def test_the_loss_is_the_papers() -> None:
    """Equation 2, literally, over both views of every picture."""
    method: Any = supcon(Config(head_dim=8), encoder()).double().train()
    batch = classes(0)
    features = method.encode(batch)
    loss, _ = method.objective(features, method.targets(batch), Progress(0, 1, 1, B))
    rows = F.normalize(method.head(F.normalize(features["views"].flatten(0, 1), dim=1)), dim=1)
    labels = batch["label"].repeat_interleave(2)
    similar = (rows @ rows.T / 0.1).fill_diagonal_(float("-inf"))
    expected = []
    for i in range(2 * B):
        positives = [p for p in range(2 * B) if p != i and labels[p] == labels[i]]
        assert len(positives) == 3
        expected.append(torch.stack([similar[i].logsumexp(0) - similar[i, p] for p in positives]).mean())
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_a_run_and_what_it_leaves(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told = run(Config(data=str(colours), output=folder, **TINY))
    assert set(told["scores"]) >= {"knn/top1", "linear/top1", "linear/macro_f1", "pixels/top1"}
    assert told["protocol"]["linear"].startswith("logistic regression")
    written = json.loads((folder / "scores.json").read_text())
    assert "linear/top1" in written["before training"]
    assert json.loads((folder / "classifier" / "classes.json").read_text()) == ["blue", "green", "red"]
    model = xmodal.load(str(folder))
    assert not any("head" in name for name in model.state_dict())
    # The classifier goes with the model that lies beside it: of pictures that it was fitted on most are right.
    fitted = load_file(folder / "classifier" / "weights.safetensors")
    files = sorted(colours.glob("*/*.png"))
    answers = (model.encode_image(files) @ fitted["weight"].T + fitted["bias"]).argmax(1)
    assert (answers == torch.arange(3).repeat_interleave(12)).float().mean() > 0.6


def test_a_run_that_goes_on_is_the_run(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(colours), **{**TINY, "save_every": 1, "output": folder})
    run(config)
    whole = {f: (folder / f).read_bytes() for f in ("model.safetensors", "classifier/weights.safetensors")}
    shutil.rmtree(folder / "checkpoints" / "step-2")
    for file in whole:
        (folder / file).unlink()
    run(replace(config, resume=True))
    assert {f: (folder / f).read_bytes() for f in whole} == whole


@pytest.mark.parametrize("per_class", [None, "random"])
def test_a_class_with_one_picture(per_class: Any, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By class it is left out and counted; at random its two views are each other's positives. Never NaN."""
    data = tmp_path / "data"
    shutil.copytree(colours, data)
    (data / "white").mkdir()
    Image.fromarray(np.full((16, 16, 3), 240, np.uint8)).save(data / "white" / "0.png")
    run(Config(data=str(data), output=tmp_path / "run", **{**TINY, "pictures_per_class": per_class}))
    said = capsys.readouterr().out
    assert ("1 with no other picture of their class" in said) == (per_class is None)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert len(losses) == 2


def test_wrong_input(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(colours / "red", flat)
    flags = ["--preset", "quick", "--output", str(tmp_path / "run")]
    assert main(["train", "supcon", "--data", str(flat), *flags]) == 2
    assert "supcon learns from classes, and" in capsys.readouterr().err
    with pytest.raises(InputError, match="A batch of 12 can't hold 5 pictures of each class"):
        run(Config(data=str(colours), output=tmp_path / "run", **{**TINY, "pictures_per_class": 5}))
    with pytest.raises(InputError, match="--pictures-per-class is 1; expected at least 2, or random"):
        parse(Config, ["--pictures-per-class", "1"], prog="")
    assert not (tmp_path / "run").exists()
