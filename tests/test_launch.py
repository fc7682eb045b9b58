"""The files for launchers: accelerate reads its own, and with fakes for Slurm the script runs, stops and requeues."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests import drawings
from tests.forks import ALONE, ROOT, Forks
from tests.test_resume import TOLD, losses, saved

LAUNCH = Path(str(files("xmodal.launch")))


@pytest.mark.parametrize(("name", "machines", "processes"), [("one_node.yaml", 1, 8), ("several_nodes.yaml", 2, 16)])
def test_accelerate_reads_its_file(name: str, machines: int, processes: int) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    found = load_config_from_file(str(LAUNCH / name))  # raises for a key that it doesn't know
    assert isinstance(found, ClusterConfig)
    assert (found.num_machines, found.num_processes, found.distributed_type) == (machines, processes, "MULTI_GPU")
    assert (found.mixed_precision, found.use_cpu, found.main_training_function) == ("no", False, "main")


FAKES = {
    "srun": 'while [ "$1" != torchrun ]; do shift; done; echo $$ > srun.pid; exec "$@"',
    "scancel": 'echo "$@" >> scancel.txt; kill -TERM "$(cat srun.pid)"',
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> scontrol.txt',
}


def free_port() -> int:
    """One of those that the script takes, by the number of the job."""
    for port in range(10000 + os.getpid() % 20000, 30000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def sbatch(folder: Path, job: int, *flags: str) -> subprocess.Popen[str]:
    """Start the script as Slurm would on one node with two GPUs."""
    for name, script in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": str(job), "JOB_NODELIST": "here", "NNODES": "1", "GPUS_ON_NODE": "2", "CPUS_PER_TASK": "1"}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), *flags],
        cwd=folder,
        env={**os.environ, **ALONE, "PATH": path, "PYTHONPATH": str(ROOT)}
        | {f"SLURM_{k}": v for k, v in slurm.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_under_slurm_a_run_stops_before_its_time_is_up_and_goes_on(forks: Forks, tmp_path: Path) -> None:
    data = drawings.write("csv", tmp_path / "data")
    of_preset = {"epochs": 22.0, "wd": 0.3}  # which only the command line knows
    told: dict[str, Any] = {**TOLD, **of_preset, "data": data, "steps": 30, "save_every": 0, "batch_size": 4}
    output = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**told, "output": output}.items()]
    script = sbatch(tmp_path, free_port() - 10000, *flags)
    until = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len(losses(output)) < 2:
        assert script.poll() is None, script.communicate()[0][-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    script.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@300 does
    said, _ = script.communicate(timeout=30)
    assert (tmp_path / "scontrol.txt").read_text().startswith("requeue "), said[-3000:]
    done = len(losses(output))
    assert f"Stopped after step {done} of 30" in said
    assert saved(output) == done < 30
    assert "is gone" not in said

    # Requeued it goes on by itself, to the end of a run that was left alone.
    forks.run_ranks("train", config={**told, "output": tmp_path / "whole"}, narrow=False)
    again = forks.ranks(
        "train", config={**told, "output": output}, narrow=False, environment={"SLURM_RESTART_COUNT": "1"}
    )
    for child in again:
        assert child.wait() == 0, child.said[-3000:]
    assert f"Going on after step {done}." in again[0].said
    assert losses(output) == losses(tmp_path / "whole")
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
