"""A process of several that dies, is told to stop, or hangs: the others say so, and the run goes on by itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import drawings
from tests.forks import ALONE, Forks
from tests.test_resume import TOLD, losses, saved

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = drawings.write("csv", tmp_path_factory.mktemp("data"))
    return {**TOLD, "data": data, "batch_size": 4}


@pytest.fixture(scope="module")
def whole(forks: Forks, told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of two processes."""
    output = tmp_path_factory.mktemp("whole") / "run"
    forks.run_ranks("train", config={**told, "output": output})
    return output


def same(output: Path, whole: Path) -> bool:
    assert losses(output) == losses(whole)
    return (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_rank_that_dies_is_named_by_the_others(forks: Forks, told: dict[str, Any], tmp_path: Path) -> None:
    config = {**told, "output": tmp_path / "run"}
    first, second = forks.ranks("train", [{}, {"meet": ("step", 4)}], config=config)
    assert second.wait() == -signal.SIGKILL
    assert first.wait(20) == 1
    error = first.said[first.said.index("error: ") :].splitlines()
    assert error[0] == (
        f"error: Rank 0 of 2 on {HOST} can't go on after step 3: rank 1 on {HOST} (pid {second.pid}) is gone: "
        "killed, or its host is down."
    )
    assert "Traceback" not in first.said
    assert len(error) == 1
    assert saved(tmp_path / "run") == 2


def test_with_the_first_rank_the_store_is_gone_and_said_so(forks: Forks, told: dict[str, Any], tmp_path: Path) -> None:
    config = {**told, "output": tmp_path / "run"}
    first, second = forks.ranks("train", [{"meet": ("step", 4)}, {}], config=config)
    assert first.wait() == -signal.SIGKILL
    assert second.wait(20) == 1
    assert f"error: Rank 1 of 2 on {HOST} can't go on after step 3: the store at 127.0.0.1:" in second.said
    assert "is gone, and rank 0 or the launcher with it: " in second.said
    assert "Traceback" not in second.said
    assert "frame #" not in second.said


def test_a_rank_that_fails_is_named_with_its_error(forks: Forks, told: dict[str, Any], tmp_path: Path) -> None:
    config = {**told, "output": tmp_path / "run"}
    first, second = forks.ranks("train", [{}, {"meet": ("step", 4), "number": signal.SIGFPE}], config=config)
    assert second.wait() == 1
    assert "ZeroDivisionError" in second.said
    assert first.wait(20) == 1
    assert f"rank 1 on {HOST} (pid {second.pid}) failed: ZeroDivisionError: of one rank." in first.said


def test_a_rank_that_is_waited_for_too_long_is_said_to_be_there(
    forks: Forks, told: dict[str, Any], tmp_path: Path
) -> None:
    config = {**told, "output": tmp_path / "run", "timeout": 3}
    first, second = forks.ranks("train", [{}, {"meet": ("step", 4), "number": None}], config=config)
    assert first.wait(30) == 1
    assert "can't go on after step 3: Timed out waiting 3000ms" in first.said
    assert "All ranks are there" in first.said
    second.kill(signal.SIGKILL)
    second.wait()


def test_who_can_t_notice_is_ended_within_the_timeout(forks: Forks, told: dict[str, Any], tmp_path: Path) -> None:
    """As over NCCL, where a call waits on the device."""
    config = {**told, "output": tmp_path / "run", "timeout": 4}
    meet = ("step", 4)
    first, second = forks.ranks("train", [{"meet": meet, "number": None}, {"meet": meet}], config=config)
    first.kill(0)
    assert second.wait() == -signal.SIGKILL
    began = time.monotonic()
    assert first.wait(10) == 1
    assert time.monotonic() - began < 4 + 2
    assert f"error: Rank 0 on {HOST} ends after step 3: rank 1 on {HOST} (pid {second.pid}) has given no" in first.said


def test_a_rank_that_dies_under_torchrun_costs_a_restart_and_nothing_else(
    forks: Forks, told: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    said = forks.run("launched", config={**told, "output": output}, restarts=1, meet=("step", 6))
    assert f"rank 1 on {HOST}" in said
    assert "Going on after step 4." in said
    assert same(output, whole)


@pytest.mark.slow
def test_so_it_is_with_torchrun_itself(forks: Forks, told: dict[str, Any], tmp_path: Path) -> None:
    """As above, with nothing forked: the processes are found and killed from outside."""
    output = tmp_path / "run"
    config = {**told, "epochs": 22.0, "wd": 0.3, "steps": 40}  # as the preset has them, which flags alone know
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**config, "output": output}.items()]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--max-restarts", "1"]
    torchrun = subprocess.Popen(
        [sys.executable, *launcher, "-m", "xmodal.train.clip", *flags],
        env={**os.environ, **ALONE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len(losses(output)) < 5:
        assert time.monotonic() < until
        time.sleep(0.02)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    second = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    said, _ = torchrun.communicate(timeout=180)
    assert torchrun.returncode == 0, said[-3000:]
    assert re.search(rf"rank 1 on {HOST} \(pid {second}(, saving a checkpoint)?\) is gone", said)
    assert "Going on after step" in said
    forks.run_ranks("train", config={**config, "output": tmp_path / "whole"}, narrow=False)
    assert same(output, tmp_path / "whole")


@pytest.mark.parametrize(("moment", "nth"), [("step", 3), ("evaluation", 1), ("saving", 1)])
def test_sigterm_to_one_of_two_ranks_ends_both_in_order(
    moment: str, nth: int, forks: Forks, told: dict[str, Any], tmp_path: Path
) -> None:
    config = {**told, "output": tmp_path / "run", "eval_every": 3}
    # In evaluation and saving it is the first process that is met: it alone may save.
    meets = 1 if moment == "step" else 0
    began = time.monotonic()
    said = forks.run("launched", config=config, meet=(moment, nth), number=signal.SIGTERM, meets=meets)
    assert time.monotonic() - began < 20
    done = len(losses(tmp_path / "run"))
    assert f"Stopped after step {done} of 10" in said
    assert saved(tmp_path / "run") == done < 10
