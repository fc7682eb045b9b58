"""Intervals cover what they should, widen where queries depend on each other, and never change."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal.evaluators.bootstrap import mean_score, median_score, statistic_score


def width(score: dict[str, float]) -> float:
    return score["high"] - score["low"]


def test_value_and_order() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    score = mean_score(values)
    assert list(score) == ["value", "low", "high"]
    assert score["value"] == 0.6
    assert 0 <= score["low"] < 0.6 < score["high"] <= 1
    assert all(type(number) is float for number in score.values())
    assert mean_score(np.ones(7)) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert mean_score(np.ones(1)) == median_score(np.ones(1)) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        score = mean_score((rng.random(100) < 0.4).astype(float), resamples=300, seed=int(rng.integers(2**31)))
        covered += score["low"] <= 0.4 <= score["high"]
    assert 0.90 < covered / 300 < 0.985  # 0.95 ± 0.0126 by chance, a little less with so few queries


def test_covers_with_groups_where_ignoring_them_does_not() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 5)
    grouped = alone = 0
    for _ in range(200):
        values = np.repeat(rng.standard_normal(60), 5) + 0.1 * rng.standard_normal(300)
        a, b = mean_score(values, groups, resamples=200), mean_score(values, resamples=200)
        grouped += a["low"] <= 0 <= a["high"]
        alone += b["low"] <= 0 <= b["high"]
    assert grouped / 200 > 0.88
    assert alone / 200 < 0.75


@pytest.mark.parametrize("score", [mean_score, median_score])
def test_groups_that_agree_widen_the_interval(score) -> None:
    values = np.random.default_rng(2).standard_normal(80)
    repeated, groups = np.repeat(values, 5), np.repeat(np.arange(80), 5)
    assert score(repeated, groups)["value"] == pytest.approx(score(values)["value"])
    assert width(score(repeated, groups)) == pytest.approx(width(score(values)), rel=1e-9, abs=0.02)
    assert 1.8 < width(score(repeated, groups)) / width(score(repeated)) < 2.8  # √5


def test_names_and_order_of_groups_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    values, groups = rng.standard_normal(50), np.sort(rng.integers(0, 12, 50))
    assert mean_score(values, groups) == mean_score(values, groups * 1000 - 7)
    order = rng.permutation(50)
    shuffled = mean_score(values[order], groups[order])
    assert shuffled == pytest.approx(mean_score(values, groups), rel=1e-12)


def test_deterministic() -> None:
    values = np.random.default_rng(4).random(40)
    for score in (mean_score, median_score):
        assert score(values) == score(values.copy())
    assert mean_score(values, seed=1) != mean_score(values)


def test_blocks_of_resamples_cover_them_all() -> None:
    values = np.random.default_rng(5).random(3000)  # 666 resamples at a time
    score = mean_score(values)
    assert width(score) == pytest.approx(2 * 1.96 * values.std() / 3000**0.5, rel=0.15)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("grouped", [False, True])
def test_median_like_a_literal_bootstrap(n: int, grouped: bool) -> None:
    rng = np.random.default_rng(n)
    values = rng.integers(1, 9, n).astype(float)
    groups = rng.integers(0, 4, n) if grouped else np.arange(n)
    members = [values[groups == g] for g in np.unique(groups)]
    draws, medians = np.random.default_rng(0), []
    for picked in draws.integers(0, len(members), (500, len(members))):
        resample = np.sort(np.concatenate([members[g] for g in picked]))
        medians.append(resample[len(resample) // 2])
    score = median_score(values, groups if grouped else None, resamples=500)
    assert score["value"] == np.median(values)
    assert (score["low"], score["high"]) == tuple(np.quantile(medians, [0.025, 0.975]))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_statistic_that_is_the_mean_gives_the_mean(grouped: bool) -> None:
    rng = np.random.default_rng(6)
    values, groups = rng.random(30), rng.integers(0, 9, 30) if grouped else None
    mine = statistic_score(lambda times: float((times * values).sum() / times.sum()), 30, groups)
    assert mine == pytest.approx(mean_score(values, groups), rel=1e-12)
