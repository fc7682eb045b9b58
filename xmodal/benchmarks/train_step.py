"""A whole training step on pictures from files, reading and decoding included: open_clip's own trainer beside ours.

Each is started by its own command line on the same table, and watched from outside: the time between two steps is
that between two lines of its log, on the clock of the process that watches.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xmodal.benchmarks.timing import Others, machine, rss_peak_bytes, summed_up
from xmodal.data.source import open_pairs
from xmodal.data.table import Table
from xmodal.errors import InputError, nearest

SKIPPED = 3  # steps that don't count: first allocations, workers that fill their queues
AHEAD = 6  # batches behind the last timed step, so that nobody's workers have run out of work while it is timed
WORKERS = (0, 1, 2)  # what open_clip's trainer is tried with; its default of 4 is meant for machines with a GPU
LOOK_EVERY = 0.02  # seconds between two looks at a log
# CLIP's (Radford et al. 2021, tables 18 and 20). `--wd` and the rest are spelled alike by both.
OPTIMIZER = {"--lr": "5e-4", "--wd": "0.2", "--beta1": "0.9", "--beta2": "0.98", "--eps": "1e-6", "--warmup": "2000"}
CLIP_NORM = "1.0"


@dataclass(frozen=True)
class Task:
    """What both do. table: a CSV with columns filepath (absolute) and caption, one line a picture."""

    table: Path
    model: str  # a name of open_clip's
    batch: int
    steps: int  # that are timed
    precision: str  # fp32 or bf16


@dataclass(frozen=True)
class Trainer:
    """A program that trains, and how its steps are seen."""

    name: str
    command: Callable[[Path], list[str]]  # from the folder that it may write to
    log: str  # the file there to which it adds a line a step
    done: Callable[[str], int]  # from that file's text to the number of steps that are done


@dataclass(frozen=True)
class Timed:
    seconds: float  # a step
    cpu_seconds: float | None  # a step, over all cores and all processes of the trainer
    peak_bytes: int | None  # of the process, whatever it holds
    taken: float | None  # part of the machine's CPU that went to others


def compare(data: str, model: str, batch: int, steps: int, precision: str, repeats: int) -> dict[str, Any]:
    """Seconds a step of each trainer in turn, ours as a part of theirs, and pairs a second; as plain data.

    data: a table of images and captions; its split train where it has splits.
    Raises InputError for a table with too few pictures and for a model that open_clip doesn't know, RuntimeError with
    the last lines of its output where a trainer ends too early.
    """
    _require_model(model)
    with tempfile.TemporaryDirectory(prefix="xmodal-speed-") as folder:
        pictures = (SKIPPED + steps + AHEAD) * batch
        task = Task(Path(folder) / "pairs.csv", model, batch, steps, precision)
        _write_table(data, task.table, pictures)
        tried = {n: time_steps(open_clip(task, n), task).seconds for n in WORKERS}
        best = min(tried, key=lambda n: tried[n])
        trainers = [xmodal(task), open_clip(task, best)]
        runs: dict[str, list[Timed]] = {trainer.name: [] for trainer in trainers}
        for repeat in range(repeats):
            for trainer in trainers[:: -1 if repeat % 2 else 1]:
                runs[trainer.name].append(time_steps(trainer, task))
    rates = {who: [batch / run.seconds for run in of_one] for who, of_one in runs.items()}
    medians = {who: statistics.median(rate) for who, rate in rates.items()}
    ours, theirs = runs
    told = [run.taken for of_one in runs.values() for run in of_one if run.taken is not None]
    return {
        "what": "a training step from picture files to new weights, each trainer by its own command line",
        "protocol": {
            "data": f"{data}: {pictures} pictures, the first caption of each, one table for both",
            "model": f"open_clip's {model}, random weights",
            "batch size": batch,
            "type": {"bf16": "float32 weights, bfloat16 autocast", "fp32": "float32"}[precision],
            "optimizer": "AdamW " + " ".join(f"{k[2:]} {v}" for k, v in OPTIMIZER.items()) + f", norm to {CLIP_NORM}",
            "timed": f"{steps} steps after {SKIPPED} that don't count, between lines of each one's log by one clock; "
            f"{AHEAD} batches more are there, and the run is ended before them",
            "CPU s": "a step's seconds on all cores together, workers included: others' load moves them less",
            "xmodal": "its default --workers",
            "open_clip": f"--workers {best}, the fastest in a first round: "
            + ", ".join(f"{n} {batch / seconds:.1f}" for n, seconds in tried.items())
            + " pairs a second",
            "peak MiB": "of each one's main process, with everything in it",
            "repeats": repeats,
            **machine(),
            "CPU taken by others": f"{max(told):.0%} at most while timing" if told else "not told by this system",
        },
        **summed_up({who: [run.seconds for run in of_one] for who, of_one in runs.items()}),
        "columns": {who: {"pairs/s": medians[who], **_cpu(of_one)} for who, of_one in runs.items()},
        "pairs a second": rates,
        "ratio of pairs a second": {theirs: medians[ours] / medians[theirs]},
        "peak bytes": {who: _highest(of_one) for who, of_one in runs.items()},
        "commands": {trainer.name: shlex.join(trainer.command(Path("FOLDER"))[1:]) for trainer in trainers},
    }


def open_clip(task: Task, workers: int) -> Trainer:
    def command(folder: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "open_clip_train.main"),
            *("--train-data", str(task.table), "--dataset-type", "csv", "--csv-separator", ","),
            *("--csv-img-key", "filepath", "--csv-caption-key", "caption"),
            *("--model", task.model, "--batch-size", str(task.batch), "--epochs", "1", "--workers", str(workers)),
            *("--precision", {"bf16": "amp_bf16"}.get(task.precision, task.precision)),
            *(token for flag in OPTIMIZER.items() for token in flag),
            *("--grad-clip-norm", CLIP_NORM, "--logs", str(folder), "--name", "run", "--log-every-n-steps", "1"),
        ]

    return Trainer(f"open_clip {version('open_clip_torch')}", command, "run/out.log", open_clip_steps)


def xmodal(task: Task) -> Trainer:
    def command(folder: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "xmodal.train.clip", "--data", str(task.table), "--output", str(folder / "run")),
            *("--preset", "paper", "--model", f"open_clip:{task.model}", "--augment", "clip"),
            *("--batch-size", str(task.batch), "--epochs", "1", "--precision", task.precision),
            *(token for flag in OPTIMIZER.items() for token in flag),
            *("--clip-norm", CLIP_NORM, "--save-every", "0"),
        ]

    return Trainer("xmodal", command, "run/metrics.jsonl", xmodal_steps)


def open_clip_steps(log: str) -> int:
    """Steps that are done by open_clip's out.log, which says each that it takes with --log-every-n-steps 1."""
    return len(re.findall(r"Train Epoch: \d+ \[.*\n", log))


def xmodal_steps(log: str) -> int:
    """Steps that are done by our metrics.jsonl; other lines than a step's have no key `loss`."""
    lines = [json.loads(line) for line in log.splitlines(keepends=True) if line.endswith("\n")]
    return max((line["step"] for line in lines if "loss" in line), default=0)


def time_steps(trainer: Trainer, task: Task) -> Timed:
    """Run it until the last timed step is done, then end it with all that it started."""
    with tempfile.TemporaryDirectory(dir=task.table.parent) as name:
        folder = Path(name)
        with (folder / "output.txt").open("wb") as output:
            child = subprocess.Popen(
                trainer.command(folder), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            first, began = _reached(SKIPPED, trainer, folder, child)
            with Others(used=lambda: _cpu_seconds(child.pid)) as others:
                last, ended = _reached(first + task.steps, trainer, folder, child)
            n = last - first
            used = None if others.own is None else others.own / n
            return Timed((ended - began) / n, used, rss_peak_bytes(child.pid), others.share)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(child.pid, signal.SIGKILL)  # its session's group: its workers, too
            child.wait()


def _reached(step: int, trainer: Trainer, folder: Path, child: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait until so many steps are done; how many they are, and when that was seen."""
    log = folder / trainer.log
    while True:
        ended = child.poll() is not None
        done = trainer.done(log.read_text(errors="replace")) if log.is_file() else 0
        if done >= step:
            return done, time.perf_counter()
        if ended:
            said = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError("\n".join([f"{trainer.name} ended after step {done}, before {step}:", *said[-5:]]))
        time.sleep(LOOK_EVERY)


def _write_table(data: str, to: Path, pictures: int) -> None:
    """The first caption of each of the first `pictures` that are there, by absolute path: both find them alike."""
    source, _ = open_pairs(data, None)
    if not isinstance(source, Table):
        raise InputError(f"--data {data} is no table of picture files; expected a CSV or TSV.")
    rows = ((source.file(row).resolve(), source.texts(row)[0]) for row in range(len(source)))
    there = [row for row, _ in zip((r for r in rows if r[0].is_file()), range(pictures), strict=False)]
    if len(there) < pictures:
        raise InputError(
            f"{data} has {len(there)} pictures to train on; {pictures} are needed: "
            f"({SKIPPED} + --steps + {AHEAD}) × --batch-size. Take fewer --steps or a smaller --batch-size."
        )
    with to.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "caption"), *there])


def _require_model(name: str) -> None:
    from open_clip import list_models

    if name not in list_models():
        raise InputError(f"open_clip has no model {name!r}; {nearest(name, list_models())}")


def _cpu_seconds(group: int) -> float:
    """What a process group has used of the CPU so far, by Linux's /proc; children that it waited for included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += sum(int(n) for n in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _cpu(runs: list[Timed]) -> dict[str, float]:
    told = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
    return {"CPU s": statistics.median(told)} if told else {}


def _highest(runs: list[Timed]) -> int | None:
    return max((run.peak_bytes for run in runs if run.peak_bytes is not None), default=None)
