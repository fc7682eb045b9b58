"""The loop leaves out a step whose gradient isn't finite, counts it, and ends after five in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.two_processes import Watch, spoil
from xmodal import loop
from xmodal.data.source import open_source
from xmodal.run import Evaluation
from xmodal.train.clip import Config, run

TINY: dict[str, Any] = {"model": "small", "batch_size": 16, "vocabulary": 64, "precision": "fp32", "lr": 1e-3}


@pytest.fixture(autouse=True)
def _no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal.image_text.evaluate", lambda *_: Evaluation({}, {}))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=_refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In that step the loss is infinite; its gradient stays as it is."""
    gradients = loop.gradients

    def spoiled(method: Any, batch: Any, progress: Any, *rest: Any) -> Any:
        loss, *more = gradients(method, batch, progress, *rest)
        return loss + float("inf") if progress.step == step else loss, *more

    monkeypatch.setattr("xmodal.loop.gradients", spoiled)


def test_a_step_without_a_finite_loss_or_gradient_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch.setattr)
    spoil(monkeypatch.setattr, steps={2})  # the last but one
    spoil_loss(monkeypatch, step=3)  # the last
    run(Config(output=tmp_path, steps=4, save_every=2, **TINY))
    assert watch.steps == [0, 1]
    assert [line["step"] for line in lines(tmp_path) if "skipped_step" in line] == [3, 4]
    before, after = (tmp_path / "checkpoints" / f"step-{n}" for n in (2, 4))
    for name in ("method.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    counts = [json.loads((folder / "state.json").read_text())["skipped_steps"] for folder in (before, after)]
    assert counts == [0, 2]


def test_the_run_goes_on_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch.setattr, steps={0, 1, 2, 3, 5})  # four in a row are borne, and forgotten
    run(Config(output=tmp_path, steps=7, save_every=6, **TINY))
    assert [line["step"] for line in lines(tmp_path) if "skipped_step" in line] == [1, 2, 3, 4, 6]
    before, after = (load_file(tmp_path / "checkpoints" / f"step-{n}" / "method.safetensors") for n in (6, 7))
    assert all(torch.isfinite(t).all() for t in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_five_in_a_row_end_the_run_with_their_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch.setattr, steps=range(1, 20))
    spoiled, rows = loop.gradients, []
    monkeypatch.setattr("xmodal.loop.gradients", lambda m, b, *rest: rows.append(b["row"]) or spoiled(m, b, *rest))
    with pytest.raises(RuntimeError, match="5 steps in a row, up to step 6. Samples of the last one") as error:
        run(Config(output=tmp_path, steps=19, **TINY))
    glyphs = open_source("glyphs")
    assert len(rows) == 6
    assert str([glyphs.key(row) for row in rows[-1].tolist()[:8]]) in str(error.value)
    assert len([line for line in lines(tmp_path) if "skipped_step" in line]) == 5
