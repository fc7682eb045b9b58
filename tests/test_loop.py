"""The loop leaves out a step whose gradient isn't finite, counts it, and ends after five in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.two_processes import spoil
from xmodal.train.clip import Config, run

TINY: dict[str, Any] = {"model": "small", "batch_size": 16, "vocabulary": 64, "precision": "fp32", "lr": 1e-3}


@pytest.fixture(autouse=True)
def _no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.train.clip.evaluate", lambda *_: ({}, {}))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch.setattr, steps={2})  # the third and last
    run(Config(output=tmp_path, steps=3, save_every=2, **TINY))
    assert [line["step"] for line in lines(tmp_path) if "skipped_step" in line] == [3]
    before, after = (tmp_path / "checkpoints" / f"step-{n}" for n in (2, 3))
    for name in ("method.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    counts = [json.loads((folder / "state.json").read_text())["skipped_steps"] for folder in (before, after)]
    assert counts == [0, 1]


def test_the_run_goes_on_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch.setattr, steps={1, 2, 3, 4})  # four in a row are borne
    run(Config(output=tmp_path, steps=7, save_every=6, **TINY))
    assert [line["step"] for line in lines(tmp_path) if "skipped_step" in line] == [2, 3, 4, 5]
    before, after = (load_file(tmp_path / "checkpoints" / f"step-{n}" / "method.safetensors") for n in (6, 7))
    assert all(torch.isfinite(t).all() for t in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_five_in_a_row_end_the_run_with_their_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch.setattr, steps=range(1, 20))
    with pytest.raises(RuntimeError, match=r"5 steps in a row, up to step 6. Samples of the last one: \["):
        run(Config(output=tmp_path, steps=19, **TINY))
    assert len([line for line in lines(tmp_path) if "skipped_step" in line]) == 5
