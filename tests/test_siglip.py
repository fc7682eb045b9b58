"""The SigLIP recipe: where it begins, its run on a few pairs, going on after a stop, the model that comes out."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import xmodal
from tests.recipe_cases import B, pairs, towers
from xmodal.cli import main
from xmodal.finetune import Towers
from xmodal.method import Progress
from xmodal.train.siglip import Config, siglip

QUICK = ["--preset", "quick", "--batch-size", "8", "--steps", "2", "--precision", "fp32", "--vocabulary", "64"]


def test_the_loss_is_the_papers() -> None:
    """Algorithm 1, literally, at its scale 10 and bias −10."""
    method: Any = siglip(Config(), Towers(towers())).double()
    batch = {**pairs(0), "image_id": torch.arange(B), "text_id": torch.arange(B)}
    rows = method.encode(batch)
    loss, metrics = method.objective(rows, method.targets(batch), Progress(0, 1, 1, B))
    logits = rows["image"] @ rows["text"].T * 10 - 10
    signs = 2 * torch.eye(B).double() - 1
    assert loss.item() == pytest.approx(-F.logsigmoid(signs * logits).sum().item() / B, rel=1e-6)
    assert metrics["scale"].item() == pytest.approx(10)
    assert metrics["bias"].item() == -10


def test_the_scale_has_no_limit() -> None:
    method: Any = siglip(Config(), Towers(towers()))
    method.log_scale.data.fill_(math.log(200))
    method.after_step({}, {}, Progress(0, 1, 1, B))
    assert method.export().scale == pytest.approx(200)


def test_a_model_of_this_loss_goes_on_from_its_scale_and_bias() -> None:
    had = towers()
    had.bias = torch.tensor(-16.5)
    had.log_scale.fill_(math.log(117))
    method: Any = siglip(Config(), Towers(had))
    assert method.bias.item() == -16.5
    assert method.log_scale.exp().item() == pytest.approx(117)
    softmax = towers()
    softmax.log_scale.fill_(math.log(100))
    method = siglip(Config(ema=0.9), Towers(softmax))
    assert method.log_scale.exp().item() == pytest.approx(10)
    method.bias.data.fill_(-3.0)
    assert method.export().bias.item() == -3.0  # of the average, which has weights of its own


def test_a_run_what_it_leaves_and_going_on(picture_pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["train", "siglip", "--data", str(picture_pairs), "--output", str(folder), *QUICK, "--save-every", "1"]
    assert main(flags) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert 5 < lines[0]["loss"] < 20
    assert "val/image_to_text/R@1" in json.loads((folder / "scores.json").read_text())["scores"]
    model = xmodal.load(str(folder))
    assert model.bias.item() == pytest.approx(-10, abs=0.1)
    whole = (folder / "model.safetensors").read_bytes()

    shutil.rmtree(folder / "checkpoints" / "step-2")
    (folder / "model.safetensors").unlink()
    assert main([*flags, "--resume"]) == 0
    assert (folder / "model.safetensors").read_bytes() == whole
    half = ["--model", str(folder), "--wise-ft", "0.5", "--output", str(tmp_path / "more")]
    assert main(["train", "siglip", "--data", str(picture_pairs), *QUICK, "--steps", "1", *half]) == 0
