"""What must be true of every image recipe; tests/recipe_cases.py has an entry for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.recipe_cases import CASES, STEPS, trained


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes says of every recipe: one launch for all."""
    folder = tmp_path_factory.mktemp("recipes")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    command = [*torchrun, str(Path(__file__).with_name("recipe_cases.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_loss_gradients_and_state_of_one(name: str, found: list[dict]) -> None:
    for rank in found:
        assert rank[name].keys() == {"loss", "gradient", "state"}
        assert {kind: worst for kind, worst in rank[name].items() if not worst < 1e-10} == {}


@pytest.mark.parametrize("name", CASES)
def test_every_weight_that_is_trained_has_a_gradient(name: str) -> None:
    steps = list(trained(CASES[name], slice(None)))
    assert len(steps) == STEPS
    trainable = {f"gradient of {n}" for n, p in CASES[name].method().named_parameters() if p.requires_grad}
    assert trainable == {n for step in steps for n in step if n.startswith("gradient")}
    assert all(torch.isfinite(step["loss"]) for step in steps)
    assert {n for step in steps for n in step if n.startswith("gradient") and step[n].abs().max() > 0} == trainable
