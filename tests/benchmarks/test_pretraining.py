"""What `xmodal eval speed pretrain` compares is the same but for whose code it is."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.recipe_cases import B, encoder, two_views
from xmodal.benchmarks import lightly_recipes, pretraining
from xmodal.method import Progress
from xmodal.pretrain import open_data, open_encoder
from xmodal.train import moco

HEADS = {
    "simclr": [("head", "projection_head")],
    "moco": [("head", "projection_head"), ("teacher_head", "projection_head_momentum")],
    "byol": [
        ("projector", "projection_head"),
        ("predictor", "prediction_head"),
        ("teacher_projector", "projection_head_momentum"),
    ],
    "barlow_twins": [("projector", "projection_head")],
}


@pytest.mark.parametrize("method", list(HEADS))
def test_from_the_same_weights_and_views_the_gradient_is_the_same(method: str) -> None:
    recipe = importlib.import_module(f"xmodal.train.{method}")
    config = recipe.Config(**recipe.PRESETS["quick"] | {"head_dim": 8} | ({"queue": 16} if method == "moco" else {}))
    tower = encoder()
    ours, theirs = getattr(recipe, method)(config, tower).train(), _theirs(method, config, tower)
    for own, other in HEADS[method]:
        _copy_weights(getattr(ours, own), getattr(theirs, other))
    if method == "moco":
        theirs.criterion.memory_bank.bank.copy_(ours.queue.rows)
    batch = two_views(0)
    if method == "simclr":
        # Of two views lightly's examples take a BatchNorm's statistics one by one, SimCLR's reference code together: of
        # two that are equal they are the same.
        batch["views"][:, 1] = batch["views"][:, 0]
    loss, _ = ours.objective(ours.encode(batch), ours.targets(batch), Progress(0, 10, 5, B))
    loss.backward()
    views = [(view.to(tower.std.dtype) / 255 - tower.mean) / tower.std for view in batch["views"].unbind(1)]
    theirs(*views, 0, 10).backward()
    first, second = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (tower.image, theirs.backbone))
    cosine = torch.cosine_similarity(first, second, dim=0).item()  # AdamW doesn't see a gradient's length
    assert cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_both_are_trained_and_timed(tmp_path: Path) -> None:
    from PIL import Image

    numbers = np.random.default_rng(0)
    for n in range(80):
        file = tmp_path / "data" / f"class{n % 2}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(128 * (n % 2), 128 * (n % 2) + 128, (32, 32, 3), dtype=np.uint8)).save(file)
    told: dict[str, Any] = {"data": str(tmp_path / "data"), "batch_size": 8, "epochs": 1, "save_every": 0, "workers": 1}
    config = moco.Config(**moco.PRESETS["quick"] | told)
    train, _ = open_data(config)
    start = open_encoder(config, train)
    both = pretraining.Both("moco", config, train, start, tmp_path / "runs")
    seen = [torch.stack(views, 1) for views in both._views()]
    assert len(seen) == both.steps == 9
    batch = both.data[4][0]["views"].float() / 255
    torch.testing.assert_close(seen[4], (batch - start.mean) / start.std)
    for model, seconds in (both.ours(), both.theirs()):
        assert seconds > 0
        moved = [(a - b).abs().max() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
        assert min(moved) > 0
        assert not model.training


def _theirs(method: str, config: Any, tower: Any) -> Any:
    return lightly_recipes.MODELS[method](copy.deepcopy(tower.image), tower.d, config).train()


def _copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """In order; biases that only theirs has are set to zero."""
    own = [p for name, p in ours.named_parameters()]
    shapes = [p.shape for p in own]
    for _, p in theirs.named_parameters():
        if shapes and p.shape == shapes[0]:
            p.data.copy_(own.pop(0))
            shapes.pop(0)
        else:
            p.data.zero_()
    assert not own
