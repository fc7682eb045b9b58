"""What is read from metrics.jsonl and drawn of it."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.report.curves import scan_panels, score_panels, training_panels
from xmodal.report.history import History, Series, Warned, read_history
from xmodal.report.plot import POINTS, thinned


def history(folder: Path, *lines: dict[str, Any] | str) -> History:
    path = folder / "metrics.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_history(path)


def test_steps_scores_and_skipped_steps(tmp_path: Path) -> None:
    found = history(
        tmp_path,
        {"step": 1, "loss": 3.0, "scale": 14.0},
        {"step": 2, "skipped_step": "not finite"},
        {"step": 2, "loss": None, "scale": 14.5},
        {"step": 2, "val/image_to_text/R@1": 0.25},
        {"step": 3, "loss": 2.0},
        '{"step": 4, "lo',
        "[]",
        '{"step": null, "loss": 1}',
    )
    assert (found.steps, found.skipped) == (3, 1)
    assert found.training["loss"].steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.training["loss"].values, [3.0, np.nan, 2.0])
    assert found.training["loss"].last == 2.0
    assert found.training["scale"].steps.tolist() == [1, 2]
    assert list(found.evaluation) == ["val/image_to_text/R@1"]


def test_warnings_of_one_kind_are_one_with_the_last_figures(tmp_path: Path) -> None:
    found = history(
        tmp_path,
        {"step": 100, "warning": "collapse: mean cosine 0.9812, loss 4.158"},
        {"step": 120, "warning": "71% of the last 50 steps went into waiting for data"},
        {"step": 120, "loss": 2.0},
        {"step": 340, "warning": "collapse: mean cosine 0.99, loss 4.2"},
        {"step": 341, "warning": None},
    )
    assert found.warnings == (
        Warned("collapse: mean cosine 0.99, loss 4.2", (100, 340)),
        Warned("71% of the last 50 steps went into waiting for data", (120,)),
    )


def test_no_file_and_nothing_finite(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.jsonl") == History({}, {}, 0, 0)
    found = history(tmp_path, {"step": 1, "loss": None, "floor": None}, {"step": 2, "loss": math.nan, "floor": None})
    assert math.isnan(found.training["loss"].last)
    assert training_panels(found) == []


def test_long_series_are_thinned_to_means_and_bands() -> None:
    n = POINTS * 10
    values = np.tile(np.arange(10.0), POINTS)
    values[3] = np.nan
    line = thinned(Series(np.arange(1, n + 1), values))
    assert len(line.x) == len(line.y) == POINTS
    assert line.low is not None
    assert line.high is not None
    assert (line.low[1:-1] <= 1).all()
    assert (line.high[1:-1] >= 8).all()
    np.testing.assert_allclose(line.y[1:-1], 4.5, atol=0.51)
    assert np.isfinite(line.y).all()


def test_panels_of_training(tmp_path: Path) -> None:
    line = {
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "pairs_per_second": 9.0,
        "scale": 14.0,
        "floor": 0.1,
        "bias": -10,
    }
    panels = training_panels(history(tmp_path, *({"step": s, **line} for s in (1, 2, 3))))
    assert [p.title.split(" ")[0] for p in panels] == ["Loss", "Learning", "Scale", "Norm", "Pairs", "bias"]
    assert [key.name.split(":")[0] for key in panels[0].legend] == ["loss", "floor"]
    for picture in (panels[0].picture.light, panels[0].picture.dark):
        kind, _, data = picture.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert b"<svg" in base64.b64decode(data)
    assert panels[0].picture.light != panels[0].picture.dark


def test_scores_over_steps_begin_before_and_end_now(tmp_path: Path) -> None:
    name = "val/image_to_text/R@1"
    found = history(tmp_path, {"step": 5, name: 0.5, "val/image_to_text/R@5": 0.9}, {"step": 9, "loss": 1.0})
    (panel,) = score_panels(found, {name: {"value": 0.75}}, {name: {"value": 0.25}})
    assert panel.title == "image → text R@1 ×100"
    ticks = base64.b64decode(panel.picture.light.partition(",")[2]).decode()
    assert ">30<" in ticks
    assert ">75<" in ticks
    assert score_panels(read_history(tmp_path / "none"), {name: {"value": 0.75}}, {}) == []


def test_scan_has_a_line_for_each_test() -> None:
    scan = {
        1.0: {"a/image_to_text/R@1": 0.5, "b/image_to_text/R@1": {"value": 0.6}, "zero_shot/top1": None},
        0.0: {"a/image_to_text/R@1": 0.3, "b/image_to_text/R@1": 0.7, "zero_shot/top1": 0.2},
    }
    retrieval, zero_shot = scan_panels(scan)
    assert [key.name for key in retrieval.legend] == ["a", "b"]
    assert [key.name for key in zero_shot.legend] == ["zero shot"]
    assert scan_panels({}) == []
