"""The BYOL recipe: two ways, views by themselves, a teacher without a predictor and with a rising momentum."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import xmodal
from tests.recipe_cases import B, encoder, two_views
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.train.byol import PRESETS, Config, byol, run

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 2, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25},
}


def a_method(**changed: Any) -> Any:
    return byol(Config(**{"hidden_dim": 16, "head_dim": 8, **changed}), encoder()).train()


def test_the_loss_is_the_papers() -> None:
    """Equations 2 and 3 over what lightly's modules make of the same features with the same weights."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

    method, batch = a_method(), two_views(0)
    online, target = method.encode(batch), method.targets(batch)
    projector, predictor = BYOLProjectionHead(16, 16, 8), BYOLPredictionHead(8, 16, 8)
    for ours, theirs in ((method.projector, projector), (method.predictor, predictor)):
        missing = theirs.layers.load_state_dict(ours.state_dict(), strict=False).missing_keys
        assert all(name.endswith("bias") for name in missing)
        for name in missing:
            theirs.layers.get_parameter(name).data.zero_()
    predicted = [predictor(projector(view)) for view in online["views"].unbind(1)]
    seen = [projector(view).detach() for view in target["views"].unbind(1)]  # the teacher begins as the projector
    cosine = NegativeCosineSimilarity()
    # lightly's is the mean of -cos in both directions.
    expected = 4 + 2 * (cosine(predicted[0], seen[1]) + cosine(predicted[1], seen[0]))
    loss, _ = method.objective(online, target, Progress(0, 10, 5, B))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_has_no_predictor_and_no_gradient() -> None:
    method, batch = a_method(), two_views(0)
    online, target = method.encode(batch), method.targets(batch)
    method.objective(online, target, Progress(0, 10, 5, B))[0].backward()
    parts = {name.partition(".")[0] for name, _ in method.named_parameters()}
    assert parts == {"towers", "projector", "predictor", "teacher", "teacher_projector"}
    moved = {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert moved == {"towers", "projector", "predictor"}
    assert not target["views"].requires_grad


def test_each_view_has_batch_statistics_of_its_own() -> None:
    method, batch = a_method(), two_views(0)
    both = method.encode(batch)["views"]
    torch.testing.assert_close(both[:, 1], method.towers(batch["views"][:, 1]))
    assert not torch.allclose(both, method.towers(batch["views"]))


def test_the_momentum_rises_to_one() -> None:
    for step, momentum in ((0, 0.9), (5, 1 - 0.1 * (math.cos(math.pi / 2) + 1) / 2), (10, 1.0)):
        method = a_method(momentum=0.9)
        begun = method.teacher_projector.module[0].weight.clone()
        with torch.no_grad():
            method.projector[0].weight.add_(1)
        method.after_step({}, {}, Progress(step, 10, 5, B))
        torch.testing.assert_close(method.teacher_projector.module[0].weight, begun + 1 - momentum)


def test_the_heads_are_the_papers() -> None:
    config = Config()
    method: Any = byol(config, encoder())
    shapes = [tuple(p.shape) for name in ("projector", "predictor") for p in getattr(method, name).parameters()]
    assert shapes == [(4096, 16), (4096,), (4096,), (256, 4096), (4096, 256), (4096,), (4096,), (256, 4096)]
    assert (config.momentum, config.optimizer, config.wd) == (0.996, "lars", 1.5e-6)
    plain = method.parameter_groups()[1]
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in plain["params"])


def test_a_run_and_what_it_leaves(colours: Path, tmp_path: Path) -> None:
    told = run(Config(data=str(colours), output=tmp_path / "run", **TINY))
    assert "knn/top1" in told["scores"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 8 for line in lines)
    model = xmodal.load(str(tmp_path / "run"))
    rows = model.encode_image([colours / "red" / "0.png"])
    torch.testing.assert_close(rows, F.normalize(rows, dim=1))
    assert {name.partition(".")[0] for name in model.state_dict()} == {"image"}


def test_wrong_input() -> None:
    for changed, said in (({"momentum": 1.1}, "--momentum is 1.1"), ({"hidden_dim": 0}, "--hidden-dim is 0")):
        with pytest.raises(InputError, match=said):
            replace(Config(), **changed).check()
