"""The SwAV recipe: crops, codes without gradient, prototypes unit and fixed at first, queues that begin late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.recipe_cases import B, encoder, many_crops, two_views
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.objectives import sinkhorn
from xmodal.train.swav import PRESETS, Config, run, swav

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 2, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25, "prototypes": 6},
}
SMALL: dict[str, Any] = {"hidden_dim": 16, "head_dim": 8, "prototypes": 6, "frozen_steps": 1}


def a_method(**changed: Any) -> Any:
    return swav(Config(**{**SMALL, **changed}), encoder()).train()


def at(step: int, steps_per_epoch: int = 5) -> Progress:
    return Progress(step, 100, steps_per_epoch, B)


def unit_rows(method: Any, features: dict[str, torch.Tensor]) -> torch.Tensor:
    """(b, v, head_dim) by the reference code's order: the head sees all crops of all pictures at once."""
    together = torch.cat(list(features.values()), 1)
    crops = [F.normalize(rows, dim=1) for rows in method.projector(together.transpose(0, 1).flatten(0, 1)).split(B)]
    return torch.stack(crops, 1)


def test_the_loss_is_the_papers() -> None:
    """Codes of the two large crops, each predicted by every other of the five: equation 2 and section 3.2."""
    method = a_method()
    features = method.encode(many_crops(0))
    assert {name: f.shape for name, f in features.items()} == {"views": (B, 2, 16), "crops": (B, 3, 16)}
    loss, _ = method.objective(features, {}, at(0))
    scores = unit_rows(method, features) @ method.prototypes.weight.T
    losses = [
        -(sinkhorn(scores[:, assigned]) * (scores[:, v] / 0.1).log_softmax(1)).sum(1).mean()
        for assigned in range(2)
        for v in range(5)
        if v != assigned
    ]
    assert len(losses) == 2 * 4
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_codes_have_no_gradient() -> None:
    method = a_method()
    scores = torch.randn(B, 2, 6, requires_grad=True)
    codes = method.codes(scores)
    assert not codes.requires_grad
    torch.testing.assert_close(codes.sum(2), torch.ones(B, 2))


def test_prototypes_are_fixed_at_first_and_unit_after_every_step() -> None:
    method = a_method(frozen_steps=3)
    for step, moves in ((0, False), (2, False), (3, True)):
        method.zero_grad(set_to_none=True)
        method.objective(method.encode(two_views(step)), targets := {}, at(step))[0].backward()
        assert (method.prototypes.weight.grad is not None) == moves
        with torch.no_grad():
            method.prototypes.weight.mul_(2)
        method.after_step({}, targets, at(step))
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


def test_queues_begin_at_their_epoch_and_help_once_they_are_full() -> None:
    method = a_method(queue=2 * B, queue_from_epoch=1)
    batch = many_crops(0)
    for step in range(4):  # two steps an epoch
        targets: dict[str, torch.Tensor] = {}
        method.objective(method.encode(batch), targets, at(step, 2))
        method.after_step({}, targets, at(step, 2))
        assert [queue.seen.item() for queue in method.queues] == [max(0, step - 1) * B] * 2
    assert torch.equal(method.queues[1].rows[B:], targets["rows"][:, 1])
    assert not torch.equal(method.queues[0].rows, method.queues[1].rows)
    scores = torch.randn(B, 2, 6)
    for i, codes in enumerate(method.codes(scores).unbind(1)):
        earlier = method.queues[i].rows @ method.prototypes.weight.T
        torch.testing.assert_close(codes, sinkhorn(torch.cat([scores[:, i], earlier]))[:B])
        assert not torch.allclose(codes, sinkhorn(scores[:, i]))


def test_without_a_queue_there_is_none() -> None:
    assert not [name for name in a_method().state_dict() if "queue" in name]
    (group,) = a_method().parameter_groups()
    assert "weight_decay" not in group


def test_a_run_and_what_it_leaves(colours: Path, tmp_path: Path) -> None:
    told = run(Config(data=str(colours), output=tmp_path / "run", **TINY))
    assert "knn/top1" in told["scores"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_two_views_are_enough(colours: Path, tmp_path: Path) -> None:
    """Other augmentations make no small crops."""
    config = Config(data=str(colours), output=tmp_path / "run", **{**TINY, "augment": "simclr", "steps": 1})
    assert "knn/top1" in run(config)["scores"]


def test_wrong_input(colours: Path, tmp_path: Path) -> None:
    for changed, said in (({"epsilon": 0.0}, "--epsilon is 0.0"), ({"queue": -1}, "--queue is -1")):
        with pytest.raises(InputError, match=said):
            replace(Config(), **changed).check()
    with pytest.raises(InputError, match="--queue 7 has no room for a global batch of 8"):
        run(Config(data=str(colours), output=tmp_path / "run", **TINY, queue=7))
    assert not (tmp_path / "run").exists()
