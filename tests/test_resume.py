"""Killed by `kill -9` at any step and resumed, a run ends as the undisturbed one: the same curve, the same weights."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import drawings
from tests.forks import Forks

STEPS, EPOCH, SAVE_EVERY = 10, 7, 2
# Seven steps an epoch of the 56 or 64 rows; most checkpoints lie in the middle of one.
TOLD: dict[str, Any] = {"model": "small", "preset": "quick", "steps": STEPS, "save_every": SAVE_EVERY, "lr": 1e-3,
                        "warmup": 2, "precision": "fp32", "max_bad_fraction": 0.1, "vocabulary": 64}  # fmt: skip


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("FAULT_SEED") or secrets.randbits(32))
    print(f"the same kills again: FAULT_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {form: drawings.write(form, folder / form) for form in drawings.FORMS}


def losses(output: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def saved(output: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max([0, *(int(p.name[5:]) for p in (output / "checkpoints").glob("step-*") if p.name[5:].isdigit())])


def kill_three_times(forks: Forks, chance: random.Random, processes: int, output: Path, told: dict[str, Any]) -> None:
    """Kill all processes of the run, and of the run that goes on, and once more, each time further in one epoch."""
    for step in sorted(chance.sample(range(EPOCH - 1), 3)):
        start = saved(output)
        moment = chance.choice(["step", "update", "saving"])
        meet = (moment, 1 if moment == "saving" else step - start + 1)
        print(f"from step {start}, killed at {meet}")
        more: list[dict[str, Any]] = [{"meet": meet}, {}][:processes]
        config = {**told, "output": output, "resume": output.exists()}
        children = forks.ranks("train", more, config=config) if processes > 1 else [
            forks.start("train", config=config, meet=meet)
        ]  # fmt: skip
        assert children[0].wait() == -signal.SIGKILL, children[0].said[-3000:]
        for other in children[1:]:
            other.kill(signal.SIGKILL)
            other.wait()
        assert len(losses(output)) < EPOCH


@pytest.mark.parametrize(
    ("form", "processes"),
    [("csv", 1), ("shards", 1), ("saved dataset", 1), pytest.param("parquet", 1, marks=pytest.mark.slow), ("csv", 2),
     pytest.param("shards", 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_killed_three_times_in_an_epoch_it_ends_as_the_undisturbed_run(
    form: str, processes: int, forks: Forks, chance: random.Random, data: dict[str, str], tmp_path: Path
) -> None:
    told = {**TOLD, "data": data[form], "batch_size": 8 // processes}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forks.run_ranks("train", processes=processes, config={**told, "output": whole})
    kill_three_times(forks, chance, processes, killed, told)
    start = saved(killed)
    said = forks.run_ranks("train", processes=processes, config={**told, "output": killed, "resume": True})
    assert start == 0 or f"Going on after step {start}." in said

    assert losses(killed) == losses(whole)
    assert [step for step, _ in losses(whole)] == list(range(1, STEPS + 1))
    for name in ("model.safetensors", "scores.json", "skipped.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert json.loads((whole / "skipped.jsonl").read_text())["reason"] == "no image"
    kept = [f"step-{STEPS}", f"step-{STEPS - SAVE_EVERY}"]
    assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == kept


def test_two_processes_then_one_then_two_are_one_curve(forks: Forks, data: dict[str, str], tmp_path: Path) -> None:
    told = {**TOLD, "data": data["csv"]}
    one, changing = {**told, "batch_size": 8, "output": tmp_path / "one"}, tmp_path / "changing"
    forks.run("train", config=one, rows=tmp_path / "one.rows")

    own = [{"rows": tmp_path / "0.rows", "meet": ("step", 4)}, {"rows": tmp_path / "1.rows"}]
    first, second = forks.ranks("train", own, config={**told, "batch_size": 4, "output": changing})
    assert first.wait() == -signal.SIGKILL
    second.kill(signal.SIGKILL)
    second.wait()
    alone = {**one, "output": changing, "resume": True}
    assert forks.start("train", config=alone, meet=("step", 6), rows=tmp_path / "alone.rows").wait() == -signal.SIGKILL
    assert saved(changing) == 6
    own = [{"rows": tmp_path / f"{rank}.rows"} for rank in range(2)]
    for child in forks.ranks("train", own, config={**told, "batch_size": 4, "output": changing, "resume": True}):
        assert child.wait() == 0, child.said[-3000:]

    def rows(name: str) -> dict[int, list[int]]:
        return dict(json.loads(line) for line in (tmp_path / f"{name}.rows").read_text().splitlines())

    together, alone_rows = [rows("0"), rows("1")], rows("alone")
    assert sorted(together[0]) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert sorted(alone_rows) == [2, 3, 4, 5, 6, 7]
    for step, expected in rows("one").items():
        found = [*([together[0][step] + together[1][step]] if step in together[0] else []), alone_rows.get(step)]
        assert [rows for rows in found if rows is not None] == [expected] * len([r for r in found if r is not None])
    assert np.array(losses(changing)) == pytest.approx(np.array(losses(tmp_path / "one")), abs=1e-5)
    weights, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", changing))
    assert weights.keys() == again.keys()
    assert max(np.abs(weights[name] - again[name]).max() for name in weights) < 1e-5


def test_a_job_that_is_told_to_stop_with_its_workers_leaves_in_order(
    forks: Forks, data: dict[str, str], tmp_path: Path
) -> None:
    told = {**TOLD, "data": data["csv"], "batch_size": 8, "workers": 2, "save_every": 0, "steps": 200}
    child = forks.start("train", config={**told, "output": tmp_path / "run"})
    log, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not log.exists() or '"step": 2,' not in log.read_text():
        assert time.monotonic() < until, child.said
        time.sleep(0.005)
    child.kill(signal.SIGTERM, group=True)
    assert child.wait(20) == 0, child.said
    done = len(losses(tmp_path / "run"))
    assert saved(tmp_path / "run") == done < 200
    assert f"Stopped after step {done} of 200" in child.said
