"""One launch of two processes for all that must be the same on any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    program = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(2)]


def test_there_are_two(found: list[dict]) -> None:
    assert [f["processes"] for f in found] == [2, 2]
    assert all(f["objects"] == [0, 1] and f["first"] == 0 for f in found)


def test_loss_and_its_gradients_are_those_of_one_process(found: list[dict]) -> None:
    for f in found:
        assert len(f["loss"]) == 20
        assert {name: worst for name, worst in f["loss"].items() if not worst < 1e-12} == {}


def test_every_parameter_has_the_gradient_of_one_process(found: list[dict]) -> None:
    for f in found:
        assert len(f["step"]) == 8
        for name, worst in f["step"].items():
            assert worst < (1e-12 if "float64" in name else 1e-6), name


def test_weights_agree_after_twelve_steps(found: list[dict]) -> None:
    assert all(f["weights after 12 steps"] < 1e-5 for f in found)


def test_sums_of_gradients(found: list[dict]) -> None:
    for f in found:
        assert f["sums"] == {
            "nobody": True,
            "first": [5.0] * 3,
            "both": [3.0] * 3,
            "wide": [3.0] * 2,
            "extra": [4.0, 1.0],
            "reduce": [3.0] * 2,
        }
