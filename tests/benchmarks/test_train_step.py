"""Two trainers timed from outside: their logs are understood, their processes end, the figures say what they are."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xmodal.benchmarks import train_step
from xmodal.benchmarks.train_step import Task, Trainer, compare, open_clip_steps, time_steps, xmodal_steps
from xmodal.cli import main
from xmodal.errors import InputError

OPEN_CLIP_LOG = """\
2026-11-23,19:02:11 | INFO |   log_every_n_steps: 1
2026-11-23,19:02:14 | INFO | Start epoch 0
2026-11-23,19:02:21 | INFO | Train Epoch: 0 [ 32/384 (8%)] Data (t): 0.512 Batch (t): 6.913, 4.62896/s, 4.62896/s/gpu \
LR: 0.000000 Logit Scale: 14.286 Contrastive_loss: 3.4793 (3.4793) Loss: 3.4793 (3.4793)
2026-11-23,19:02:27 | INFO | Train Epoch: 0 [ 64/384 (17%)] Data (t): 0.020 Batch (t): 5.701, 5.61305/s, 5.61305/s/gpu \
LR: 0.000001 Logit Scale: 14.286 Contrastive_loss: 3.4712 (3.4752) Loss: 3.4712 (3.4752)
"""
XMODAL_LOG = """\
{"step": 1, "loss": 3.48, "lr": 2.5e-07, "grad_norm": 12.1, "pairs_per_second": 4.9, "scale": 14.28}
{"step": 2, "loss": null, "lr": 5e-07, "grad_norm": 12.0, "pairs_per_second": 5.9, "scale": 14.28}
{"step": 3, "skipped_step": "the loss or the gradient was not finite"}
"""


def test_steps_of_both_logs() -> None:
    assert open_clip_steps(OPEN_CLIP_LOG) == 2
    assert xmodal_steps(XMODAL_LOG) == 2
    for steps, log in ((open_clip_steps, OPEN_CLIP_LOG), (xmodal_steps, XMODAL_LOG)):
        assert steps("") == 0
        counted = [steps(log[:end]) for end in range(len(log) + 1)]  # a line that is half written doesn't count
        assert counted == sorted(counted)
        assert set(counted) == {0, 1, 2}


def test_both_are_told_the_same() -> None:
    task = Task(Path("t.csv"), "ViT-B-32", 64, 8, "bf16")
    ours, theirs = (_flags(t.command(Path("out"))) for t in (train_step.xmodal(task), train_step.open_clip(task, 1)))
    assert (ours["--data"], ours["--model"], ours["--precision"]) == ("t.csv", "open_clip:ViT-B-32", "bf16")
    assert (theirs["--train-data"], theirs["--model"], theirs["--precision"]) == ("t.csv", "ViT-B-32", "amp_bf16")
    for flag in ("--batch-size", "--epochs", *train_step.OPTIMIZER):
        assert ours[flag] == theirs[flag]
    assert ours["--clip-norm"] == theirs["--grad-clip-norm"]
    assert theirs["--workers"] == "1"
    assert "--workers" not in ours


def test_ours_parses_and_theirs_too() -> None:
    from open_clip_train.params import parse_args

    from xmodal.config import parse
    from xmodal.train.clip import Config

    task = Task(Path("t.csv"), "ViT-B-32", 64, 8, "fp32")
    ours = parse(Config, train_step.xmodal(task).command(Path("out"))[3:], prog="x")
    theirs = parse_args(train_step.open_clip(task, 2).command(Path("out"))[3:])
    for mine, other in {"lr": "lr", "wd": "wd", "beta2": "beta2", "eps": "eps", "clip_norm": "grad_clip_norm"}.items():
        assert getattr(ours, mine) == getattr(theirs, other)


def test_time_between_two_lines(tmp_path: Path) -> None:
    timed = time_steps(_counting(0.05), _task(tmp_path, steps=6))
    assert 0.03 < timed.seconds < 0.2  # a step sleeps for 0.05 s; when its line is read the machine decides
    if sys.platform == "linux":
        assert timed.cpu_seconds is not None
        assert timed.cpu_seconds < timed.seconds
        assert timed.peak_bytes is not None
        assert 2**22 < timed.peak_bytes < 2**28


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which processes there are")
def test_a_trainer_s_workers_end_with_it(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    code = f"import subprocess; open({str(ids)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
    time_steps(_counting(0.01, code), _task(tmp_path, steps=1))
    for _ in range(100):  # whoever takes it over has to wait for it
        if _ended(int(ids.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("a worker goes on")


def test_a_trainer_that_ends_too_early_says_why(tmp_path: Path) -> None:
    failing = _counting(0.0, "raise SystemExit('no such optimizer')\n")
    with pytest.raises(RuntimeError, match="counter ended after step 0, before 3:\nno such optimizer"):
        time_steps(failing, _task(tmp_path, steps=1))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A table with splits, two captions of each picture, and one picture that isn't there."""
    (tmp_path / "images").mkdir()
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text", "split"])
        rows.writerow(["images/missing.png", "nothing", "train"])
        for i in range(48):
            Image.new("RGB", (32, 32), (5 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
            rows.writerow([f"images/{i}.png", f'red, "{i}"', "train" if i < 44 else "val"])
            rows.writerow([f"images/{i}.png", "another caption", "train" if i < 44 else "val"])
    return tmp_path / "pairs.csv"


def test_figures_and_protocol(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[str]]] = []

    def ours(task: Task) -> Trainer:
        with task.table.open(newline="") as file:
            seen.append(list(csv.reader(file)))
        return _counting(0.03, name="xmodal")

    monkeypatch.setattr(train_step, "xmodal", ours)
    monkeypatch.setattr(train_step, "open_clip", lambda task, n: _counting(0.2 if n != 1 else 0.06, name="open_clip 3"))
    file = tmp_path / "step.json"
    told = ["--data", str(pairs), "--batch-size", "4", "--steps", "2", "--repeats", "2", "--json", str(file)]
    assert main(["eval", "speed", "step", *told]) == 0
    said = capsys.readouterr().out
    for words in ("xmodal / open_clip 3", "pairs/s", "--workers 1, the fastest", "44 pictures, the first caption"):
        assert words in said
    written = json.loads(file.read_text())
    assert 0.3 < written["ratio of medians"]["open_clip 3"] < 0.8
    assert 1.25 < written["ratio of pairs a second"]["open_clip 3"] < 3
    assert [len(rates) for rates in written["pairs a second"].values()] == [2, 2]
    header, *rows = seen[0]
    assert header == ["filepath", "caption"]
    assert len(rows) == 44
    assert rows[0] == [str((pairs.parent / "images" / "0.png").resolve()), 'red, "0"']


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "needs --data"),
        (["--data", "none.csv"], "No data 'none.csv'"),
        (["--data", "glyphs"], "is no table of picture files"),
        (["--data", "{pairs}", "--model", "ViT-B-23"], "open_clip has no model 'ViT-B-23'; did you mean 'ViT-B-32'"),
        (["--data", "{pairs}", "--batch-size", "5", "--steps", "0"], "--steps is 0"),
        (["--data", "{pairs}", "--batch-size", "5"], "has 44 pictures to train on; 85 are needed"),
    ],
)
def test_wrong_input(pairs: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str) -> None:
    assert main(["eval", "speed", "step", *(flag.format(pairs=pairs) for flag in flags)]) == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        compare(str(tmp_path), "ViT-B-32", 4, 2, "fp32", 1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_trainers_as_they_are(pairs: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "WORKERS", (1,))
    result = compare(str(pairs), "ViT-S-32-alt", 4, 2, precision, repeats=1)
    assert all(rate > 0 for rates in result["pairs a second"].values() for rate in rates)
    assert 0.1 < next(iter(result["ratio of medians"].values())) < 10


def _counting(seconds: float, before: str = "", name: str = "counter") -> Trainer:
    """A trainer whose log gets a line each time so many seconds have passed."""
    code = f"import sys, time\nlog = open(sys.argv[1], 'a')\n{before}"
    code += f"for _ in range(10_000):\n time.sleep({seconds})\n print('step', file=log, flush=True)"
    return Trainer(
        name, lambda folder: [sys.executable, "-c", code, str(folder / "log")], "log", lambda log: log.count("\n")
    )


def _task(folder: Path, steps: int) -> Task:
    return Task(folder / "t.csv", "none", 4, steps, "fp32")


def _flags(command: list[str]) -> dict[str, Any]:
    return {a: b for a, b in zip(command, command[1:], strict=False) if a.startswith("--")}


def _ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    stat = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return stat.startswith("Z")
