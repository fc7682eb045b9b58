"""Guards, fed with numbers: what they say, once, and that what goes well is left alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from xmodal import guards
from xmodal.guards import LASTING, LONG, WINDOW, Guards, Lasting, SlowLoader, Stall, measure


def rows(n: int = 64, d: int = 32, *, along: float = 0.0, seed: int = 0) -> Tensor:
    """Random rows (n, d), with so much of one common direction."""
    found = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    found[:, 0] += along
    return normalize(found, dim=-1)


def healthy(seed: int = 0) -> dict[str, Tensor]:
    image = rows(seed=seed)
    return {"image": image, "text": normalize(image + 0.5 * rows(seed=seed + 1), dim=-1)}


def said(
    guard: Guards, steps: int, *, scale: float | Sequence[float] = 14.0, rate: float = 1.0,
    representations: dict[str, Tensor] | None = None,
) -> list[tuple[int, str]]:  # fmt: skip
    """What is warned of in so many steps."""
    scales = [scale] * steps if isinstance(scale, int | float) else scale
    found = representations or healthy()
    return [
        (step, text) for step in range(steps) for text in guard.step(2.0, rate, {"scale": scales[step]}, found)
    ]  # fmt: skip


def test_lasting_says_it_once_and_again_after_it_was_gone() -> None:
    guard = Lasting(3)
    assert [guard(so) for so in [True] * 5 + [False] + [True] * 4] == [
        *(False, False, True, False, False, False, False, False, True, False)
    ]


def test_what_goes_well_is_left_alone() -> None:
    assert said(Guards(), 2 * LONG, scale=[14 + step / 20 for step in range(2 * LONG)]) == []


def test_the_temperature_at_its_cap() -> None:
    guard = Guards()
    scales = [90.0, *[100.00001] * (LASTING + 50), 99.0, *[99.99999] * LASTING]
    found = said(guard, len(scales), scale=scales)
    assert [step for step, _ in found] == [LASTING, 2 * LASTING + 51]
    assert "scale has been 100, its cap, for 100 steps" in found[0][1]
    assert "--lr" in found[0][1]
    assert said(Guards(), 2 * LASTING, scale=100.0) == []  # a model came with it


def test_a_temperature_that_sinks_to_nothing() -> None:
    [(step, text)] = said(Guards(), 2 * LASTING + 1, scale=[14.0, *[1.2] * 2 * LASTING])
    assert step == LASTING
    assert "below 1.5 for 100 steps (now 1.20)" in text
    assert said(Guards(), 2 * LASTING, scale=1.0) == []  # it was set so, and isn't learned
    assert said(Guards(), LASTING, scale=[14.0] + [1.2, 1.6] * (LASTING // 2)) == []


def test_rows_that_become_one() -> None:
    guard = Guards()
    assert said(guard, 5) == []
    one = {"image": rows(along=200.0), "text": rows(seed=1)}
    [(step, text)] = said(guard, 2 * LASTING, rate=2.0, representations=one)
    assert step == LASTING - 1
    assert text.startswith("collapse: for 100 steps the batch's 'image' rows have pointed one way (mean cosine 0.99")
    assert said(guard, 1) == []
    assert len(said(guard, LASTING, representations=one)) == 1


def test_a_random_network_whose_rows_are_alike_is_given_its_warm_up() -> None:
    guard, one = Guards(), {"image": rows(along=200.0), "text": rows(along=200.0, seed=1)}
    for step in range(3 * LASTING):
        assert guard.step(2.0, step / LASTING, {"scale": 14.0}, one) == []
    found = said(guard, 2 * LASTING, rate=1.0, representations=one)
    assert [text[:9] for _, text in found] == ["collapse:"]


def test_rows_of_two_kinds_and_nothing_within_them() -> None:
    guard = Guards()
    assert said(guard, 5) == []
    kinds = rows(2)[torch.arange(64) % 2] + 0.01 * rows(seed=1)
    [(_, text)] = said(guard, 2 * LASTING, representations={"image": kinds, "text": kinds})
    assert "'image' rows have varied along 1.0 directions only" in text


def test_pairs_that_have_nothing_in_common() -> None:
    guard, found = Guards(), []
    for step in range(2 * LONG):  # in a batch of 64 they stand out or not by chance, by ±0.2 nats
        strangers = {"image": rows(64, 64, seed=2 * step), "text": rows(64, 64, seed=2 * step + 1)}
        found += [(step, text) for text in guard.step(4.16, 1.0, {"scale": 14.0}, strangers)]
    [(step, text)] = found
    assert LONG <= step < 2 * LONG  # of the first there is no telling whether the rate still rises
    assert "pairs have been no more alike than other rows" in text
    assert said(Guards(), 2 * LONG, representations={"image": rows()}) == []


def test_measures_against_their_definitions() -> None:
    image, text = rows(20, 8, along=1.0), rows(20, 8, along=2.0, seed=1)
    cosines, directions, above = measure({"image": image * 3, "text": text})
    others = ~torch.eye(20, dtype=torch.bool)
    for name, found in {"image": image, "text": text}.items():
        assert cosines[name] == pytest.approx((found @ found.T)[others].mean().item(), abs=1e-5)
        values = torch.linalg.eigvalsh(torch.cov(found.T))
        assert directions[name] == pytest.approx((values.sum() ** 2 / values.square().sum()).item(), rel=1e-4)
    alike = image @ text.T
    assert above == pytest.approx((alike.diagonal().mean() - alike[others].mean()).item(), abs=1e-5)


def test_measures_of_views_of_few_rows_and_of_none() -> None:
    views = torch.stack([rows(20, 40), rows(20, 40, seed=1)], 1)  # (b, 2, d), wider than there are rows
    cosines, directions, above = measure({"text": views, "label": torch.arange(20), "score": torch.randn(20)})
    assert set(cosines) == {"text"}
    apart = measure({"first": views[:, 0], "second": views[:, 1]})
    assert above == pytest.approx(apart[2], abs=1e-6)
    values = torch.linalg.eigvalsh(torch.cov(views.flatten(0, 1).T))
    assert directions["text"] == pytest.approx((values.sum() ** 2 / values.square().sum()).item(), rel=1e-4)
    for few in (0, 1, 2):
        _, directions, above = measure({"image": rows(few), "text": rows(few, seed=1)})
        assert directions == {}
        assert math.isnan(above) == (few < 2)
    broken = {"image": torch.full((32, 8), math.nan), "text": rows(32, 8)}
    assert said(Guards(), 2 * LONG, representations=broken) == []
    assert said(Guards(), 2 * LONG, representations={"image": rows(1), "text": rows(1)}) == []


def slow(guard: SlowLoader, waited: float, worked: float, steps: int) -> list[str]:
    return [text for _ in range(steps) if (text := guard.step(waited, worked))]


def test_a_loader_slower_than_training() -> None:
    guard = SlowLoader(workers=0, cores=8)
    assert guard.step(1000.0, 0.0) is None  # the first waits for the start
    [text] = slow(guard, 0.25, 0.1, 4 * WINDOW)
    assert text == "71% of the last 50 steps went into waiting for data (0.25 of 0.35 s a step). Try --workers 3."
    assert slow(guard, 0.04, 0.06, 2 * WINDOW) == []  # not worth a word, and not gone
    assert slow(guard, 0.3, 0.1, WINDOW) == []
    assert slow(guard, 0.01, 0.1, WINDOW) == []
    assert len(slow(guard, 0.3, 0.1, WINDOW)) == 1


@pytest.mark.parametrize(
    ("workers", "cores", "try_"),
    [(2, 16, "Try --workers 8."), (2, 4, "Try --workers 4."), (4, 4, "4 workers are all that 4 cores can feed")],
)
def test_how_many_workers_to_try(workers: int, cores: int, try_: str) -> None:
    """Two that give a batch each 0.74 s, together one in 0.37 s of which the step takes 0.1: 7.4 would keep up."""
    [text] = slow(SlowLoader(workers, cores), 0.27, 0.1, WINDOW + 1)
    assert try_ in text


def test_a_stall_is_told_once_until_a_step_came_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 10.0)
    guard = Stall()
    assert [guard.waits(seconds) for seconds in (5.0, 9.9, 10.1, 20.0)] == [False, False, True, False]
    guard.came(21.0)
    assert not guard.waits(11.0)  # the next is late, too
    guard.came(11.0)
    guard.came(0.1)
    assert guard.waits(10.5)


def test_a_run_says_so_in_its_log_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate two hundred times too high all rows become one within a few steps."""
    from xmodal.run import Evaluation
    from xmodal.train.clip import Config, run

    monkeypatch.setattr("xmodal.image_text.evaluate", lambda *_: Evaluation({}, {}))
    monkeypatch.setattr(guards, "LASTING", 4)
    monkeypatch.setattr(guards, "PATIENCE", 0.001)
    tiny: dict[str, Any] = {"model": "small", "batch_size": 16, "vocabulary": 64, "precision": "fp32", "warmup": 1}
    run(Config(output=tmp_path, steps=14, lr=0.4, **tiny))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warnings = {line["warning"]: line["step"] for line in lines if "warning" in line}
    [collapse] = [text for text in warnings if text.startswith("collapse: for 4 steps")]
    [stall] = [text for text in warnings if text.startswith("its data has not come for 0.001 s: this process")]
    assert 4 <= warnings[collapse] <= 14
    assert not any("loss" in line for line in lines if "warning" in line)
    out = capsys.readouterr().out
    assert f"step {warnings[collapse]}  warning: {collapse}" in out
    assert f"step {warnings[stall]}  warning: {stall}" in out
    assert len([line for line in lines if "loss" in line]) == 14
