"""SLIP: SimCLR beside CLIP, as an option of its recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import xmodal
from tests.recipe_cases import SIDE, B, pairs, towers, views
from xmodal.cli import main
from xmodal.config import parse
from xmodal.data.views import Distort
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError
from xmodal.finetune import Towers
from xmodal.method import Progress
from xmodal.train.clip import Config, clip, slip_views

QUICK = ["--preset", "quick", "--batch-size", "8", "--steps", "2", "--precision", "fp32", "--vocabulary", "64"]


def test_the_loss_is_clips_and_simclrs() -> None:
    """Mu et al. 2021, equation of section 3 with weight 1, over all rows but a view's own."""
    method: Any = clip(Config(image_loss="simclr"), Towers(towers())).double()
    batch = {**pairs(0), "views": views(0)}
    rows, targets = method.encode(batch), method.targets(batch)
    loss, metrics = method.objective(rows, targets, Progress(0, 1, 1, B))
    plain: Any = clip(Config(), Towers(method.towers))
    assert "views" not in plain.encode(pairs(0))
    alone, _ = plain.objective(rows, targets, Progress(0, 1, 1, B))

    z = F.normalize(torch.cat([method.head(view) for view in rows["views"].unbind(1)]), dim=1)
    similar = (z @ z.T / 0.1).fill_diagonal_(float("-inf"))
    literal = torch.stack([similar[i].logsumexp(0) - similar[i, (i + B) % (2 * B)] for i in range(2 * B)]).mean()
    assert loss.item() == pytest.approx(alone.item() + literal.item(), rel=1e-6)
    assert metrics["image_loss"].item() == pytest.approx(literal.item(), rel=1e-6)
    assert metrics["scale"].item() == pytest.approx(1 / 0.07)


def test_views_of_photographs_are_the_papers_and_signs_are_not_flipped() -> None:
    large = slip_views(Config(), Preparation(224, 224), photographs=True).branches["views"]
    assert len(large) == 2
    for one in large:
        assert isinstance(one, Distort)
        assert (one.scale, one.jitter, one.blur, one.solarise) == ((0.08, 1.0), (0.4, 0.4, 0.4, 0.1), 0.5, 0)
        assert (one.jittered, one.grey) == (0.8, 0.2)
    small = slip_views(Config(), Preparation(SIDE, SIDE), photographs=True).branches["views"]
    assert [getattr(one, "blur", None) for one in small] == [0, 0]
    signs = slip_views(Config(), Preparation(SIDE, SIDE), photographs=False).branches["views"]
    assert not any(isinstance(one, Distort) for one in signs)


def test_a_run_what_it_leaves_and_going_on(picture_pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["train", "clip", "--data", str(picture_pairs), "--image-loss", "simclr", "--output", str(folder), *QUICK,
             "--save-every", "1", "--micro-batch", "3"]  # fmt: skip
    assert main(flags) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["image_loss"] > 0 for line in lines)
    assert not any("head" in name for name in xmodal.load(str(folder)).state_dict())
    whole = (folder / "model.safetensors").read_bytes()

    shutil.rmtree(folder / "checkpoints" / "step-2")
    (folder / "model.safetensors").unlink()
    assert main([*flags, "--resume"]) == 0
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_tower_that_is_not_trained_has_nothing_to_learn_from_views() -> None:
    with pytest.raises(InputError, match="--image-loss simclr trains the image tower, which --lock-image leaves as it"):
        parse(Config, ["--image-loss", "simclr", "--lock-image"], prog="")
