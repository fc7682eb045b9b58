"""Data that is short, uneven, wrong or other than before: told in words on any number of processes, and no hang."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests import drawings
from tests.forks import Forks
from tests.test_resume import TOLD, losses, saved


def on_two(forks: Forks, status: int, **config: Any) -> str:
    """What two processes said, both of which ended soon and with this status; only the first says what is wrong."""
    children = forks.ranks("train", config={**TOLD, "steps": 2, **config})
    for child in children:
        assert child.wait(30) == status, child.said[-3000:]
    assert "error: " not in children[1].said
    return children[0].said


def test_one_shard_is_enough_for_two_processes_with_three_workers_each(forks: Forks, tmp_path: Path) -> None:
    drawings.write("shards", tmp_path / "data", range(10, 40))
    (tmp_path / "data" / "1.tar").unlink()
    on_two(forks, 0, data=str(tmp_path / "data"), batch_size=2, workers=3, output=tmp_path / "run")
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]


def test_seven_samples_on_two_processes(forks: Forks, tmp_path: Path) -> None:
    data = drawings.write("shards", tmp_path / "data", range(10, 17))
    said = on_two(forks, 2, data=data, batch_size=4, output=tmp_path / "few")
    assert "error: The data has 7 rows, fewer than one global batch of 8. Choose --batch-size (per process)" in said
    assert not (tmp_path / "few").exists()
    on_two(forks, 0, data=data, batch_size=3, output=tmp_path / "enough")
    assert [step for step, _ in losses(tmp_path / "enough")] == [1, 2]


def test_a_shard_without_pairs_names_the_keys_it_has_and_those_it_needs(forks: Forks, tmp_path: Path) -> None:
    data = drawings.write("shards", tmp_path / "data", range(10, 40))
    with tarfile.open(tmp_path / "data" / "2.tar", "w") as tar:
        for name in ("a.img", "a.lbl"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"none"))
    said = on_two(forks, 2, data=data, batch_size=2, output=tmp_path / "run")
    assert "2.tar has no picture with a caption: its members end in .img, .lbl; expected .jpg" in said
    assert ".txt" in said
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_data_and_settings_or_says_what_differs(forks: Forks, tmp_path: Path) -> None:
    data, output = drawings.write("csv", tmp_path / "data"), tmp_path / "run"
    told = {**TOLD, "data": data, "batch_size": 8, "steps": 4, "output": output}
    forks.start("train", config=told, meet=("step", 4)).wait()
    told["resume"] = True
    said = forks.run("train", status=2, config={**told, "seed": 1, "lr": 2e-3})
    assert f"{output} began with other settings: lr 0.001 -> 0.002, seed 0 -> 1." in said
    assert "--allow-changed-config" in said

    with Path(data).open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[5][1] += ", or not"
    with Path(data).open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    said = forks.run("train", status=2, config=told)
    assert f"{output} was trained on other data than {data} holds now: captions or files differ." in said
    assert "--allow-changed-data" in said
    with Path(data).open("a", newline="") as stream:
        csv.writer(stream).writerow(["63.png", "one more", "train"])
        csv.writer(stream).writerow(["0.png", "and of a picture that was held out", "train"])
    assert "57 rows instead of 56." in forks.run("train", status=2, config=told)
    assert [step for step, _ in losses(output)] == [1, 2, 3]  # as it was left

    said = forks.run("train", config={**told, "allow_changed_data": True})
    assert "57 rows instead of 56." in said
    assert [step for step, _ in losses(output)] == [1, 2, 3, 4]
    assert json.loads((output / "checkpoints" / "step-4" / "state.json").read_text())["rows"] == 57


HOST = socket.gethostname()
QUICK = {**TOLD, "steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawings.write("csv", tmp_path_factory.mktemp("drawings"))


@pytest.mark.parametrize(
    ("moment", "doing"),
    [
        ("opening", "opening data and model"),
        pytest.param("export", "exporting the model", marks=pytest.mark.slow),
        pytest.param("evaluation", "evaluating what was trained", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_before_or_after_training_is_named_with_what_it_did(
    moment: str, doing: str, forks: Forks, data: str, tmp_path: Path
) -> None:
    config = {**QUICK, "data": data, "output": tmp_path / "run"}
    first, second = forks.ranks("train", [{}, {"meet": (moment, 1)}], config=config, beat=0.2)
    assert second.wait() == -signal.SIGKILL
    assert first.wait(20) == 1
    assert [line for line in first.said.splitlines() if "ank 1" in line or "Trace" in line] == [
        f"error: Rank 0 of 2 on {HOST} can't go on, {doing}: rank 1 on {HOST} (pid {second.pid}, {doing}) is gone: "
        "killed, or its host is down."
    ]


def test_a_rank_that_fails_after_training_is_named_with_its_error(forks: Forks, data: str, tmp_path: Path) -> None:
    config = {**QUICK, "data": data, "output": tmp_path / "run"}
    failing = {"meet": ("evaluation", 1), "number": signal.SIGFPE}
    first, second = forks.ranks("train", [{}, failing], config=config, beat=0.2)
    assert second.wait() == 1
    assert "ZeroDivisionError" in second.said
    assert first.wait(20) == 1
    named = f"rank 1 on {HOST} (pid {second.pid}, evaluating what was trained) failed: ZeroDivisionError: of one rank."
    assert f"can't go on, evaluating what was trained: {named}" in first.said
    assert "Traceback" not in first.said


@pytest.mark.parametrize("lacking", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_is_wrong_on_one_rank_alone_is_said_once_and_all_end_with_it(
    lacking: int, forks: Forks, data: str, tmp_path: Path
) -> None:
    """As where a host has not got the data."""
    there = {**QUICK, "data": data, "output": tmp_path / "run"}
    own = [{"config": {**there, "data": str(tmp_path / "none.csv")} if rank == lacking else there} for rank in (0, 1)]
    children = forks.ranks("train", own, beat=0.2)
    for child in children:
        assert child.wait(20) == 2, child.said[-3000:]
        assert "Traceback" not in child.said
    name = f"rank 1 on {HOST}: " if lacking else ""
    assert f"error: {name}No data '{tmp_path / 'none.csv'}': " in children[lacking].said
    assert "error: " not in children[1 - lacking].said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_is_heard_while_a_step_waits_for_data_that_does_not_come(
    workers: int, forks: Forks, data: str, tmp_path: Path
) -> None:
    config = {**TOLD, "batch_size": 8, "workers": workers, "data": data, "output": tmp_path / "run"}
    # The fourth of this process's batches, or with two workers that read in turn the second of each: the third of all.
    child = forks.start("train", config=config, meet=("reading", 2 if workers else 4), number=None, beat=0.2)
    done = stalled_after(tmp_path / "run", 2 if workers else 3)
    child.kill(signal.SIGTERM)
    assert child.wait(20) == 0, child.said[-3000:]
    assert f"Stopped after step {done} of {TOLD['steps']}. With --resume it goes on." in child.said
    assert saved(tmp_path / "run") == done


@pytest.mark.parametrize(
    ("asked", "goes_on"), [(1, False), *(pytest.param(asked, True, marks=pytest.mark.slow) for asked in (0, 1))]
)
def test_sigterm_to_one_rank_is_heard_by_another_whose_data_does_not_come(
    asked: int, goes_on: bool, forks: Forks, data: str, tmp_path: Path
) -> None:
    config = {**TOLD, "batch_size": 4, "data": data, "output": tmp_path / "run"}
    ranks = forks.ranks("train", [{"meet": ("reading", 4), "number": None}, {}], config=config, beat=0.2)
    stalled_after(tmp_path / "run", 3)
    ranks[asked].kill(signal.SIGTERM)
    for rank in ranks:
        assert rank.wait(20) == 0, rank.said[-3000:]
    assert "Stopped after step 3 of" in ranks[0].said
    assert saved(tmp_path / "run") == 3
    if goes_on:
        forks.run_ranks("train", config={**config, "resume": True})
        forks.run_ranks("train", config={**config, "output": tmp_path / "whole"})
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def stalled_after(output: Path, steps: int) -> int:
    """Wait until so many steps are done."""
    until = time.monotonic() + 60
    while not (output / "metrics.jsonl").exists() or len(losses(output)) < steps:
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)  # the next waits
    assert len(losses(output)) == steps
    return steps
