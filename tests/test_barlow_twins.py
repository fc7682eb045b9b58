"""The Barlow Twins recipe: correlations of a bias-free head, two rates, views by themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.recipe_cases import B, encoder, two_views
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.pretrain import optimizer
from xmodal.train.barlow_twins import PRESETS, Config, barlow_twins, run

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 2, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25, "head_dim": 16},
}


def test_the_loss_is_the_papers() -> None:
    """Algorithm 1 over what a head of torch's own makes of the same features with the same weights; and lightly's."""
    from lightly.loss import BarlowTwinsLoss

    method: Any = barlow_twins(Config(head_dim=12), encoder()).train()
    head = nn.Sequential(
        *(nn.Linear(16, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU()),
        *(nn.Linear(12, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU()),
        nn.Linear(12, 12, bias=False),
    )
    head.load_state_dict(method.projector.state_dict())
    views = method.encode(two_views(0))["views"]
    loss, _ = method.objective({"views": views}, {}, Progress(0, 1, 1, B))

    last = nn.BatchNorm1d(12, affine=False)
    first, second = (head(view) for view in views.unbind(1))
    correlation = last(first).T @ last(second) / B
    expected = sum(
        (1 - correlation[i, j]) ** 2 if i == j else 0.0051 * correlation[i, j] ** 2
        for i in range(12)
        for j in range(12)
    )
    assert loss.item() == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5)
    assert loss.item() == pytest.approx(BarlowTwinsLoss(lambda_param=0.0051)(first, second).item(), rel=1e-3)


def test_each_view_has_batch_statistics_of_its_own() -> None:
    method: Any = barlow_twins(Config(head_dim=12), encoder()).train()
    batch = two_views(0)
    torch.testing.assert_close(method.encode(batch)["views"][:, 0], method.towers(batch["views"][:, 0]))


def test_gains_and_shifts_have_a_rate_of_their_own() -> None:
    config = Config(head_dim=12)
    groups = barlow_twins(config, encoder()).parameter_groups()
    opt = optimizer(config)(groups)
    rates = [0.2 * group.get("lr_scale", 1.0) for group in opt.param_groups]
    assert rates == pytest.approx([0.2, 0.0048])
    assert [group["weight_decay"] for group in opt.param_groups] == [1e-6, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_the_head_is_the_papers() -> None:
    with torch.device("meta"):
        from xmodal.encoders.heads import batch_norm_mlp

        shapes = [tuple(p.shape) for p in batch_norm_mlp(2048, *[Config().head_dim] * 3).parameters()]
    wide, norm = (8192, 8192), (8192,)
    assert shapes == [(8192, 2048), norm, norm, wide, norm, norm, wide]


def test_a_run_and_what_it_leaves(colours: Path, tmp_path: Path) -> None:
    told = run(Config(data=str(colours), output=tmp_path / "run", **TINY))
    assert "knn/top1" in told["scores"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < 2 * 16 + 0.0051 * 16 * 15


def test_wrong_input() -> None:
    for changed, said in (({"lr_biases": 0.0}, "--lr-biases is 0.0"), ({"redundancy": -1.0}, "--redundancy is -1.0")):
        with pytest.raises(InputError, match=said):
            replace(Config(), **changed).check()
