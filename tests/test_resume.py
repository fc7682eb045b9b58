"""Killed by `kill -9` in the middle of an epoch and resumed, a run ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

SHAPES = ("circle", "square", "cross", "bar")
COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four drawings with two captions each, one of them broken."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["filepath,caption,split"]
    for n in range(64):
        shape, colour = SHAPES[n % 4], COLOURS[n // 4 % 4]
        image = Image.new("RGB", (40, 40), "white")
        box = (4 + n % 7, 4 + n % 5, 30 + n % 7, 28 + n % 5)
        pen = ImageDraw.Draw(image)
        {"circle": pen.ellipse, "square": pen.rectangle, "cross": pen.line, "bar": pen.line}[shape](box, fill=colour)
        image.save(folder / f"{n}.png")
        split = "val" if n % 8 == 0 else "train"
        lines += [f"{n}.png,a {colour} {shape},{split}", f'{n}.png,"number {n}, {colour}",{split}']
    (folder / "9.png").write_bytes(b"<html>not found</html>")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def command(table: Path, output: Path, *more: str) -> list[str]:
    # Two steps an epoch of the 56 rows: a checkpoint each 3 steps lies in the middle of an epoch.
    return [sys.executable, "-m", "xmodal.train.clip", "--data", str(table), "--output", str(output),
            "--preset", "quick", "--batch-size", "20", "--steps", "10", "--save-every", "3", "--precision", "fp32",
            "--max-bad-fraction", "0.1", "--micro-batch", "8", "--vocabulary", "64", *more]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_and_signal(table: Path, output: Path, step: int, number: signal.Signals, *more: str) -> int:
    """Start a run and send all its processes a signal once its log has `step`; its exit status."""
    process = subprocess.Popen(
        command(table, output, *more),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log = output / "metrics.jsonl"
    until = time.monotonic() + 120
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert process.poll() is None, process.stdout.read()[-3000:] if process.stdout else ""
        assert time.monotonic() < until
        time.sleep(0.005)
    os.killpg(process.pid, number)
    return process.wait(60)


def run(table: Path, output: Path, *more: str) -> str:
    done = subprocess.run(command(table, output, *more), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def losses(output: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(table, folder)
    return folder


def test_a_job_that_is_told_to_stop_with_its_workers_leaves_in_order(whole: Path, table: Path, tmp_path: Path) -> None:
    assert run_and_signal(table, tmp_path / "asked", 2, signal.SIGTERM, "--workers", "2") == 0
    steps = [int(p.name[5:]) for p in (tmp_path / "asked" / "checkpoints").iterdir()]
    assert f"Going on after step {max(steps)}" in run(table, tmp_path / "asked", "--resume")
    assert (tmp_path / "asked" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(tmp_path / "asked") == losses(whole)


def test_a_killed_run_ends_as_the_whole_one(whole: Path, table: Path, tmp_path: Path) -> None:
    run_and_signal(table, tmp_path / "killed", 4, signal.SIGKILL)
    assert "Going on after step 3" in run(table, tmp_path / "killed", "--resume")

    weights, again = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "killed"))
    assert weights.keys() == again.keys()
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []
    assert losses(whole) == losses(tmp_path / "killed")
    skipped = [(folder / "skipped.jsonl").read_text() for folder in (whole, tmp_path / "killed")]
    assert skipped[0] == skipped[1]
    assert json.loads(skipped[0])["reason"] == "no image"
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (whole, tmp_path / "killed")]
    assert scores[0] == scores[1]
    assert {"val/image_to_text/R@1", "val/text_to_image/median_rank"} <= scores[0]["scores"].keys()
    assert sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()) == ["step-10", "step-9"]
