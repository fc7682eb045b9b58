"""Two processes with sharded towers compute what one with whole ones does, and go on from each other's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.encoders import hubs
from tests.fsdp_cases import RUN, told_of_sentences
from tests.interop import small_models
from tests.test_two_processes import write_pairs
from xmodal import checkpoint
from xmodal.train import simcse
from xmodal.train.clip import Config, run

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and the run of one process with which all others are compared."""
    folder = tmp_path_factory.mktemp("fsdp")
    hubs.bert(folder / "bert")
    hubs.clip(folder / "hf")
    small_models.of_open_clip(folder / "open_clip")
    write_pairs(folder)
    run(Config(data=str(folder / "pairs.csv"), output=folder / "one", batch_size=16, **RUN))
    return folder


def launch(folder: Path, which: str) -> Found:
    program = Path(__file__).with_name("fsdp_cases.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), str(folder), which]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(program.parents[1]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(2)]


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return launch(folder, "fast")


@pytest.fixture(scope="module")
def more(folder: Path) -> Found:
    return launch(folder, "slow")


def check_steps(found: Found) -> None:
    for f in found:
        for kind, told in f["step"].items():
            piece, slices = told["slices"]["None"], told["slices"]["5"]
            assert piece["whole"] == 0, kind  # not one bit, for two numbers have one sum
            assert slices["whole"] < (1e-15 if "float64" in kind else 1e-6), kind
            for found_off in (piece, slices):
                if "float64" in kind:
                    assert found_off["one process"] < 1e-12, kind
                else:  # one process's own gradient is some 1e-6 off, and as far from its own in slices
                    assert found_off["rounding"] < 2 * told["rounding of one process"], kind
            assert told["export"] < 2e-6, kind
            # Each layer, and what is around them, of the towers and of their average.
            assert told["modules"] == [[1.0, True]] * (2 * (told["layers"] + 1)), kind
            assert told["layers"] >= 4, kind
            assert told["left whole"] == ["log_scale"], kind
            assert told["rows"], kind
    for kind in found[0]["step"]:
        shares = [f["step"][kind]["share"] for f in found]
        assert sum(shares) == pytest.approx(1), kind
        assert max(shares) < 0.52, kind


def test_gradients_are_those_of_whole_towers(found: Found) -> None:
    check_steps(found)


@pytest.mark.slow
def test_gradients_are_those_of_whole_towers_from_everywhere(more: Found) -> None:
    check_steps(more)
    for f in more:
        assert max(f["one tower alone"].values()) < 1e-6
        assert f["compiled"] < 1e-6


def test_a_layer_whose_sum_is_divided_would_be_seen(found: Found) -> None:
    assert all(f["forgotten"] > 1e-3 for f in found)


def test_each_process_writes_its_rows_and_any_number_reads_them(found: Found, folder: Path) -> None:
    for f in found:
        told = f["saved"]
        pieces = [f"{kind}{n}.safetensors" for kind in ("method", "optimizer") for n in (".1-of-2", ".2-of-2", "")]
        assert told["files"] == ["manifest.json", *pieces, "state.json"]
        assert told["damage"] is None
        assert told["equal"]
        assert told["optimizer equal"]
    made = folder / "saved" / "checkpoints" / "step-1"
    sizes = [(made / name).stat().st_size for name in pieces]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert sizes[2] < 1000  # the temperature
    with safe_open(made / "method.2-of-2.safetensors", framework="pt") as file:
        assert file.get_slice("towers.text.token_embedding.weight").get_shape() == [49408 // 2, 48]


def test_damage_is_seen_in_every_part(found: Found, folder: Path, tmp_path: Path) -> None:
    made = folder / "saved" / "checkpoints" / "step-1"
    names = [file.name for file in made.iterdir() if file.name != "manifest.json"]
    assert len(names) == 7
    for name in names:
        shutil.copytree(made, tmp_path / name)
        told = (tmp_path / name / name).read_bytes()
        (tmp_path / name / name).write_bytes(told[:-1] + b"\x55")
        assert checkpoint.damage(tmp_path / name) == f"{name} has other bytes than were written"


def test_a_full_disk_of_one_process_fails_the_save_on_all_and_leaves_the_earlier(found: Found) -> None:
    for f in found:
        for failing in (0, 1):
            told = f["saved"][f"full disk of {failing}"]
            assert told.startswith("The checkpoint of step 2 can't be written to ")
            assert f"No space left on device (process {failing})" in told
        assert f["saved"]["left"] == ["step-1"]


def test_a_gradient_that_is_not_finite_in_one_processs_rows_skips_the_step_on_all(found: Found) -> None:
    assert [f["spoiled"] for f in found] == [{"taken": [0, 2], "finite": True, "sharded": True}] * 2


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def compare(folder: Path, name: str) -> None:
    """The run is that of one process: its curve, its weights, its scores."""
    one, other = logged(folder / "one"), logged(folder / name)
    assert [line["step"] for line in other] == [line["step"] for line in one]
    assert len(one) == 7  # six steps and an evaluation
    for a, b in zip(one, other, strict=True):
        assert b.keys() == a.keys()
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
            assert b["scale"] == pytest.approx(a["scale"], rel=1e-6)
    weights, others = (load_file(folder / n / "model.safetensors") for n in ("one", name))
    assert others.keys() == weights.keys()
    assert max((others[n] - weights[n]).abs().max().item() for n in weights) < 1e-5
    scores = [json.loads((folder / n / "scores.json").read_text())["scores"] for n in ("one", name)]
    assert scores[0] == scores[1]


def files(folder: Path, step: int) -> int:
    return len(list((folder / "checkpoints" / f"step-{step}").iterdir()))


def test_two_then_one_then_two_processes_train_as_one(found: Found, folder: Path) -> None:
    compare(folder, "in turn")
    assert (files(folder / "in turn", 4), files(folder / "in turn", 6)) == (4, 8)  # whole, and in parts


def test_a_sharded_run_goes_on_on_one_process(found: Found, folder: Path) -> None:
    shutil.copytree(folder / "in turn", folder / "in turn, then one")
    shutil.rmtree(folder / "in turn, then one" / "checkpoints" / "step-4")
    told = {**RUN, "steps": 7, "batch_size": 16, "allow_changed_config": True, "resume": True, "fsdp": True}
    run(Config(data=str(folder / "pairs.csv"), output=folder / "in turn, then one", **told))
    assert [line["step"] for line in logged(folder / "in turn, then one") if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_two_processes_train_as_one_from_the_start_and_from_its_checkpoint(more: Found, folder: Path) -> None:
    compare(folder, "two")
    compare(folder, "one then two")


@pytest.mark.slow
def test_sentences_train_and_score_alike(more: Found, folder: Path) -> None:
    simcse.run(simcse.Config(output=folder / "sentences one", batch_size=16, **told_of_sentences(folder)))
    lines = [logged(folder / f"sentences {n}") for n in ("one", "two")]
    assert len(lines[0]) == 6
    for a, b in zip(*lines, strict=True):
        told = [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in (a, b)]
        assert told[1] == pytest.approx(told[0], rel=1e-4, abs=1e-5)
    scores = [json.loads((folder / f"sentences {n}" / "scores.json").read_text())["scores"] for n in ("one", "two")]
    assert scores[1].keys() == scores[0].keys()
    for name, score in scores[0].items():
        assert scores[1][name] == pytest.approx(score, abs=1e-4)
