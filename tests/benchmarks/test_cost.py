"""What a run would cost: formulas on numbers small enough to check by eye, and the command on `small`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xmodal.benchmarks.cost import Job, OneDevice, memory, seconds, traffic
from xmodal.cli import main

JOB: dict[str, Any] = {"pairs": 1000, "devices": 4, "batch": 10, "micro_batch": 4, "width": 8, "trained": 100,
                       "other": 20, "largest": 30}  # fmt: skip
ONE = OneDevice(slice=2.0, again=0.5, loss=0.1, optimizer=0.4, activations=7000)


def test_steps_and_slices() -> None:
    assert (Job(**JOB).steps, Job(**JOB).slices) == (25, 3)
    assert Job(**{**JOB, "pairs": 1001}).steps == 26


def test_traffic() -> None:
    rows = {"texts gathered": 4 * 3 * 10 * 8, "gradient of texts scattered": 4 * 3 * 10 * 8}
    assert traffic(Job(**JOB)) == {**rows, "gradients summed": 2 * 3 * 100}
    sharded = {"weights gathered": 8 * 3 * 120, "gradients scattered": 3 * 3 * 100}
    assert traffic(Job(**JOB, fsdp=True)) == {**rows, **sharded}
    assert sum(traffic(Job(**{**JOB, "devices": 1})).values()) == 0


def test_memory() -> None:
    rows = {"activations of a slice": 7000, "embeddings and their gradients": 16 * 80,
            "gathered texts and their gradient": 8 * 320}  # fmt: skip
    whole = {"weights": 480, "gradients": 400, "AdamW's two averages": 800, "gradients while they are summed": 400}
    assert memory(Job(**JOB), ONE) == {**whole, **rows}
    assert memory(Job(**{**JOB, "devices": 1}), ONE)["gradients while they are summed"] == 0
    shared = {"weights": 120, "gradients": 100, "AdamW's two averages": 200}
    layer = {"a layer and the next, gathered, and their gradient": 240}
    assert memory(Job(**JOB, fsdp=True), ONE) == {**shared, **rows, **layer}


def test_seconds() -> None:
    assert seconds(Job(**JOB), ONE) == {"towers": 3 * 2 + 2 * 0.5, "loss": pytest.approx(0.4), "optimizer": 0.4}
    sent = sum(traffic(Job(**JOB)).values())
    assert seconds(Job(**JOB), ONE, bandwidth=sent / 5)["traffic, nothing overlapped"] == pytest.approx(5)
    assert seconds(Job(**JOB, fsdp=True), ONE)["optimizer"] == pytest.approx(0.1)


def test_the_command_measures_computes_and_says_what_was_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    flags = ["--model", "small", "--pairs", "1e6", "--devices", "8", "--batch-size", "8", "--micro-batch", "4"]
    assert main(["eval", "cost", *flags, "--activations", "0.5", "--bandwidth", "1", "--json", str(file)]) == 0
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "Never run" in said or "never run" in said
    assert "2 · 4 · (W − 1)/W · P" in said
    assert found["job"]["steps"] == 15625
    assert found["bytes on each device"]["activations of a slice"] == 5e8
    step = sum(found["seconds of a step"].values())
    assert found["run"]["hours"] == pytest.approx(15625 * step / 3600)
    assert found["bytes that each device sends in a step"]["texts gathered"] == 4 * 7 * 8 * found["job"]["width"]
    assert all(found["one device"][name] > 0 for name in ("slice", "loss", "optimizer"))

    assert main(["eval", "cost", *flags, "--activations", "0.5", "--pairs-per-second", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["seconds of a step"]["towers"] == pytest.approx(2 * 2 + 2 / 3)
    assert "traffic, nothing overlapped" not in found["seconds of a step"]


@pytest.mark.parametrize("flags", [["--devices", "0"], ["--micro-batch", "2000"], ["--bandwidth", "-1"]])
def test_numbers_that_no_run_can_have(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["eval", "cost", "--pairs", "1e6", *(flags if "--devices" in flags else ["--devices", "2", *flags])]) == 2
    )
    assert flags[0] in capsys.readouterr().err
