"""The MoCo recipe: whose negatives, whose gradients, the teacher's step, the queue that a stopped run goes on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.recipe_cases import B, encoder, two_views
from xmodal.cli import guard
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.train.moco import PRESETS, Config, main, moco, run

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 4, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "save_every": 2, "hold_out": 0.25, "queue": 20},
}
STEP = Progress(0, 10, 5, B)


def a_method(**changed: Any) -> Any:
    return moco(Config(**{"head_dim": 8, "queue": 20, "momentum": 0.9, **changed}), encoder()).train()


def test_the_loss_is_the_papers() -> None:
    """Algorithm 1, literally: logits (b, 1 + k) of a query, its key and the queue; the first is right."""
    method = a_method(temperature=0.3)
    batch = two_views(0)
    query, key = method.encode(batch)["query"], method.targets(batch)["key"]
    loss, _ = method.objective({"query": query}, {"key": key}, STEP)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ method.queue.rows.T], 1) / 0.3
    assert logits.shape == (B, 1 + 20)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.zeros(B, dtype=torch.long)).item(), rel=1e-6)
    # The teacher begins as the encoder: the second view's query would be the key.
    swapped = {"views": batch["views"].flip(1)}
    torch.testing.assert_close(method.encode(swapped)["query"], key)


def test_keys_and_teacher_get_no_gradient_and_the_other_keys_of_the_batch_have_no_part() -> None:
    method = a_method()
    query = F.normalize(torch.randn(2, 8), dim=1).requires_grad_()
    key = F.normalize(torch.randn(2, 8), dim=1).requires_grad_()
    loss, _ = method.objective({"query": query}, {"key": key}, STEP)
    loss.backward()
    assert key.grad is None
    other = key.detach().clone()
    other[1] = F.normalize(torch.randn(8), dim=0)
    query_again = query.detach().clone().requires_grad_()
    method.objective({"query": query_again}, {"key": other}, STEP)[0].backward()
    assert query.grad is not None
    assert query_again.grad is not None
    assert torch.equal(query_again.grad[0], query.grad[0])
    assert not torch.equal(query_again.grad[1], query.grad[1])
    trained = {name.partition(".")[0] for name, p in method.named_parameters() if p.requires_grad}
    assert trained == {"towers", "head"}


def test_after_a_step_the_teacher_has_followed_and_the_keys_are_in_the_queue() -> None:
    method = a_method()
    key = method.targets(two_views(0))["key"]
    earlier = method.queue.rows.clone()
    begun = {name: t.clone() for name, t in method.teacher.state_dict().items()}
    with torch.no_grad():
        for p in method.towers.parameters():
            p.add_(1)
    method.after_step({}, {"key": key}, STEP)
    for name, now in method.towers.state_dict().items():
        if now.is_floating_point():
            expected = 0.9 * begun[f"module.{name}"] + 0.1 * now
            torch.testing.assert_close(method.teacher.state_dict()[f"module.{name}"], expected)
    assert torch.equal(method.queue.rows[:B], key)
    assert torch.equal(method.queue.rows[B:], earlier[B:])


def test_a_run_and_one_that_goes_on_with_its_queue_and_teacher(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(colours), output=folder, **TINY)
    assert "knn/top1" in run(config)["scores"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(name.startswith("image.") for name in load_file(folder / "model.safetensors"))
    last = folder / "checkpoints" / "step-4"
    whole = {file.name: file.read_bytes() for file in last.glob("*.safetensors")}
    held = load_file(last / "method.safetensors")
    assert held["queue.seen"] == 32
    assert any(name.startswith("teacher.") for name in held)
    shutil.rmtree(last)
    run(replace(config, resume=True))
    assert {file.name: file.read_bytes() for file in last.glob("*.safetensors")} == whole


def test_a_batch_larger_than_the_queue(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--data", str(colours), "--preset", "quick", "--batch-size", "8", "--queue", "7", "--hold-out", "0.25"]
    status = guard(lambda: main([*flags, "--output", str(tmp_path / "run")]))
    assert status == 2
    assert "--queue 7 has no room for a global batch of 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_input() -> None:
    for changed, said in (({"queue": 0}, "--queue is 0"), ({"momentum": 1.0}, "--momentum is 1.0")):
        with pytest.raises(InputError, match=said):
            replace(Config(), **changed).check()


def test_all_weights_decay() -> None:
    (group,) = a_method().parameter_groups()
    assert "weight_decay" not in group
    assert any(p.ndim == 1 for p in group["params"])
