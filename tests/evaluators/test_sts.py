"""Spearman and its bootstrap against scipy and a literal version, alignment and uniformity against their formulas."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.utils._python_dispatch import TorchDispatchMode

from xmodal.data.sts import StsSet, StsSets
from xmodal.errors import InputError
from xmodal.evaluators import alignment as geometry
from xmodal.evaluators import evaluate_sts as driver
from xmodal.evaluators import sts
from xmodal.evaluators.alignment import alignment, alignment_score, uniformity, uniformity_score
from xmodal.evaluators.bootstrap import compare_spearman, spearman_score
from xmodal.evaluators.evaluate_sts import embed_sentences, evaluate_sts, judge
from xmodal.evaluators.sts import cosines, spearman

RNG = np.random.default_rng


def at_angles(degrees: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows (n, 2) that are so far apart, of various lengths."""
    radians = np.deg2rad(degrees)
    lengths = np.arange(1, len(radians) + 1)[:, None]
    return np.tile([[3.0, 0.0]], (len(radians), 1)), lengths * np.stack([np.cos(radians), np.sin(radians)], 1)


def noisy(n: int, seed: int = 0, noise: float = 1.0, step: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and gold scores that agree somewhat; both have ties."""
    rng = RNG(seed)
    gold = np.round(rng.normal(size=n) / step) * step
    return np.round(gold + noise * rng.normal(size=n), 1), gold


# sts, cosines, spearman


@pytest.mark.parametrize(
    ("degrees", "gold", "expected"),
    [
        ([10, 30, 80], [5, 3, 0], 1),
        ([10, 30, 80], [0, 3, 5], -1),
        ([10, 30, 80, 170], [3, 5, 1, 0], 0.8),  # 1 − 6 (1 + 1) / (4 · 15)
        ([10, 30, 80], [4, 4, 0], 3**0.5 / 2),  # ranks 3 2 1 against 2.5 2.5 1
        ([45, 45, 45], [1, 2, 3], 0),  # all similarities equal: nothing is told about the order
    ],
)
def test_by_eye(degrees: list[float], gold: list[float], expected: float) -> None:
    assert sts(*at_angles(degrees), gold) == {"spearman": pytest.approx(expected, abs=1e-12)}


def test_equal_sentences_tie_whatever_their_length() -> None:
    rows = RNG(0).normal(size=(500, 384)).astype(np.float32) * RNG(1).uniform(0.01, 100, (500, 1)).astype(np.float32)
    assert (cosines(rows, rows) == 1).all()
    assert (cosines(rows, -rows) == -1).all()
    assert sts(rows, rows, np.arange(500.0))["spearman"] == 0


def test_rows_of_zeros_and_any_kind_of_array() -> None:
    first, second = at_angles([10, 30, 80])
    assert cosines(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [0, 0]
    np.testing.assert_allclose(cosines(first, second), np.cos(np.deg2rad([10, 30, 80])), atol=1e-12)
    tensors = (torch.tensor(first, requires_grad=True), torch.tensor(second).bfloat16())
    assert sts(*tensors, torch.tensor([5, 3, 0])) == sts(first, second, [5.0, 3, 0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_is_scipy_s(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = np.array(pairs, dtype=float).T
    if (gold == gold[0]).all():
        with pytest.raises(ValueError, match="gold is .* throughout"):
            spearman(predicted, gold)
        return
    expected = 0 if (predicted == predicted[0]).all() else spearmanr(predicted, gold)[0]
    assert spearman(predicted, gold) == pytest.approx(expected, abs=1e-12)
    assert -1 <= spearman(predicted, gold) <= 1


ROWS = np.eye(3)


@pytest.mark.parametrize(
    ("first", "second", "gold", "said"),
    [
        (ROWS, ROWS[:2], [1, 2, 3], "must both be"),
        (ROWS[0], ROWS[0], [1, 2, 3], "must both be"),
        (ROWS, ROWS, [1, 2], "must both be"),
        (ROWS, ROWS, [[1], [2], [3]], "must both be"),
        (ROWS[:1], ROWS[:1], [1], "at least two pairs"),
        (ROWS, ROWS * np.nan, [1, 2, 3], "not finite"),
        (ROWS, ROWS, [1, 2, np.inf], "not finite"),
        (ROWS, ROWS[::-1].copy(), [2, 2, 2], "gold is 2 throughout"),
    ],
)
def test_what_cannot_be_scored(first: Any, second: Any, gold: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sts(first, second, gold)


# The bootstrap


def literal(predicted: np.ndarray, gold: np.ndarray, picked: np.ndarray) -> np.ndarray:
    """Each resample by itself, with scipy's ranks."""
    found = []
    for rows in picked:
        a, b = predicted[rows], gold[rows]
        constant = (a == a[0]).all() or (b == b[0]).all()
        found.append(0.0 if constant else spearmanr(a, b)[0])
    return np.array(found)


@pytest.mark.parametrize("n", [2, 3, 20, 101])
def test_interval_like_a_literal_bootstrap(n: int) -> None:
    predicted, gold = noisy(n, seed=n, step=1.0)
    gold[0] += 1  # so that no two are a constant
    drawn = literal(predicted, gold, RNG(0).integers(0, n, (300, n)))
    score = spearman_score(predicted, gold, resamples=300)
    assert score["value"] == spearman(predicted, gold)
    np.testing.assert_allclose([score["low"], score["high"]], np.quantile(drawn, [0.025, 0.975]), atol=1e-12)


def test_covers_the_true_correlation_about_as_often_as_it_says() -> None:
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman of a bivariate normal with correlation 0.6
    rng, covered = RNG(0), 0
    for _ in range(300):
        a, b = rng.normal(size=(2, 150))
        score = spearman_score(0.6 * a + 0.8 * b, a, resamples=300, seed=int(rng.integers(2**31)))
        covered += score["low"] <= truth <= score["high"]
    assert 0.90 < covered / 300 < 0.985  # 0.95 ± 0.0126 by chance


def test_average_and_paired_differences_like_a_literal_bootstrap() -> None:
    (a, gold_a), (b, gold_b) = noisy(40, 1), noisy(30, 2)
    sets = {"one": ([a, -a, gold_a], gold_a), "two": ([b, b + 0.0, b**3], gold_b)}
    scores, differences = compare_spearman(sets, resamples=200, seed=5)
    assert [list(score) for score in scores] == [["one", "two", "average"]] * 3
    assert len(differences) == 2

    from zlib import crc32

    drawn = {}
    for name, (predicted, gold) in sets.items():
        picked = RNG((5, crc32(name.encode()))).integers(0, len(gold), (200, len(gold)))
        drawn[name] = np.stack([literal(p, gold, picked) for p in predicted])
    drawn["average"] = (drawn["one"] + drawn["two"]) / 2
    for name, of_models in drawn.items():
        for i, score in enumerate(scores):
            np.testing.assert_allclose(
                [score[name]["low"], score[name]["high"]], np.quantile(of_models[i], [0.025, 0.975]), atol=1e-12
            )
        for i, difference in enumerate(differences, 1):
            apart = np.quantile(of_models[i] - of_models[0], [0.025, 0.975])
            np.testing.assert_allclose([difference[name]["low"], difference[name]["high"]], apart, atol=1e-12)
            value = scores[i][name]["value"] - scores[0][name]["value"]
            assert difference[name]["value"] == pytest.approx(value, abs=1e-12)
    assert scores[0]["average"]["value"] == (scores[0]["one"]["value"] + scores[0]["two"]["value"]) / 2
    assert differences[0]["two"] == {"value": 0, "low": 0, "high": 0}  # the same model


def test_a_set_s_interval_depends_on_nothing_beside_it() -> None:
    sets = {"one": ([noisy(50, 1)[0]], noisy(50, 1)[1]), "two": ([noisy(50, 2)[0]], noisy(50, 2)[1])}
    both = compare_spearman(sets)[0][0]
    assert compare_spearman({"two": sets["two"]})[0] == [{"two": both["two"]}]  # and there is no average of one


def test_a_paired_interval_is_narrower() -> None:
    gold = noisy(300, 3)[1]
    first = gold + RNG(4).normal(size=300)
    second = first + 0.1 * RNG(5).normal(size=300)
    scores, (difference,) = compare_spearman({"one": ([first, second], gold)})
    width = difference["one"]["high"] - difference["one"]["low"]
    assert width < 0.4 * (scores[0]["one"]["high"] - scores[0]["one"]["low"])


# Alignment and uniformity


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_geometry_by_eye() -> None:
    assert alignment([[1.0, 0], [0, 2]], [[5.0, 0], [3, 0]]) == pytest.approx(1)  # 0 and 2
    assert uniformity([[1.0, 0], [-3, 0]]) == pytest.approx(-8)  # the farthest there is: −2 · 2²
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-6)
    assert uniformity([[1.0, 0], [0, 1], [1, 0]]) == pytest.approx(np.log((1 + 2 * np.exp(-4)) / 3))


@pytest.mark.parametrize("n", [2, 7, 8, 30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [2.0, 0.5])
def test_geometry_like_the_formulas(monkeypatch: pytest.MonkeyPatch, n: int, dtype: Any, t: float) -> None:
    monkeypatch.setattr(geometry, "TILE", 4)
    first, second = RNG(n).normal(size=(2, n, 5)).astype(dtype)
    x, y = unit(first.astype(float)), unit(second.astype(float))
    near = 1e-6 if dtype == np.float32 else 1e-12
    assert alignment(first, second) == pytest.approx(((x - y) ** 2).sum(1).mean(), abs=near)
    pairs = [np.exp(-t * ((x[i] - x[j]) ** 2).sum()) for i in range(n) for j in range(n) if i != j]
    assert uniformity(torch.from_numpy(first), t) == pytest.approx(np.log(np.mean(pairs)), abs=near)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_uniformity_holds_no_square_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "TILE", 32)
    with Largest() as largest:
        uniformity(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)))
    assert 300 <= largest.numbers <= 32 * 32


def test_intervals_of_the_geometry() -> None:
    rng = RNG(0)
    rows = rng.normal(size=(200, 6)) + 0.3
    score = uniformity_score(rows)
    assert score["value"] == pytest.approx(uniformity(rows))
    x = unit(rows)
    kernel = np.exp(-2 * ((x[:, None] - x[None]) ** 2).sum(2))
    drawn = []
    for picked in rng.integers(0, 200, (500, 200)):
        times = np.bincount(picked, minlength=200).astype(float)
        weights = np.outer(times, times) * (1 - np.eye(200))
        drawn.append(np.log((weights * kernel).sum() / weights.sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert [score["low"], score["high"]] == pytest.approx([low, high], abs=0.15 * (high - low))
    positives = rng.normal(size=(2, 50, 3))
    near = alignment_score(*positives)
    assert near["value"] == pytest.approx(alignment(*positives))
    assert near["low"] < near["value"] < near["high"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: alignment(ROWS, ROWS[:2]), "must both be"),
        (lambda: alignment(ROWS[:0], ROWS[:0]), "n at least 1"),
        (lambda: alignment(ROWS[0], ROWS[0]), r"must be \(n, d\)"),
        (lambda: uniformity(ROWS[:1]), "at least two rows"),
        (lambda: uniformity(np.full((3, 3), np.inf)), "not finite"),
    ],
)
def test_geometry_that_is_none(call: Callable[[], float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


# The driver


class Letters:
    """Rows of how often a sentence has each letter; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.options: list[dict[str, Any]] = []
        self.truncated = 7

    def encode(self, sentences: list[str], **options: Any) -> np.ndarray:
        assert type(sentences) is list
        self.asked.append(sentences)
        self.options.append(options)
        self.truncated += sum(len(s) > 20 for s in sentences)
        return np.stack([np.bincount([ord(c) % 32 for c in s.lower()], minlength=32) for s in sentences])


class Towers:
    """As a pair of towers has it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.sizes.append(len(texts))
        return torch.from_numpy(Letters().encode(list(texts))).float()


FIRST = ["a dog runs", "a cat sleeps", "the sea is blue", "a dog runs"]
SECOND = ["the dog is running", "a cat is asleep", "stock markets fell", "a man plays the guitar outside"]


def pairs(name: str = "STS-B", gold: Sequence[float] = (4.2, 5, 0, 1)) -> StsSet:
    return StsSet(name, f"{name}.tsv", "raw text", FIRST, SECOND, np.array(gold, dtype=float))


def test_each_sentence_once_and_the_scores_of_the_arrays() -> None:
    model = Letters()
    protocol, scores = evaluate_sts(model, [pairs(), pairs("SICK-R", [1, 2, 3, 4])])
    assert model.asked == [[*FIRST[:3], *SECOND]]
    assert model.options == [{}]
    first, second = (torch.from_numpy(Letters().encode(side)).double() for side in (FIRST, SECOND))
    assert list(scores) == ["STS-B", "SICK-R", "average", "alignment", "uniformity"]
    for name, gold in (("STS-B", [4.2, 5, 0, 1]), ("SICK-R", [1, 2, 3, 4])):
        assert scores[name]["value"] == pytest.approx(sts(first, second, gold)["spearman"])
    assert scores["alignment"]["value"] == pytest.approx(alignment(first[:2], second[:2]), rel=1e-5)
    unique = torch.cat([first[:3], second])
    assert scores["uniformity"]["value"] == pytest.approx(uniformity(unique), rel=1e-5)
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"]
    assert set(protocol) == {
        "task", "data", "sets", "unique sentences", "average", "alignment", "uniformity",
        "sentences longer than the model reads", "similarity", "interval", "xmodal",
    }  # fmt: skip
    assert protocol["sets"]["STS-B"] == "4 pairs, STS-B.tsv, raw text"
    assert protocol["unique sentences"] == 7
    assert "2 pairs of STS-B" in protocol["alignment"]
    assert protocol["sentences longer than the model reads"] == {"model": 1}  # not what was cut before
    json.dumps([protocol, scores], allow_nan=False)


@pytest.mark.parametrize(
    ("found", "whose"),
    [
        ([pairs("mine")], "mine"),
        ([pairs("mine", [0.1, 0.2, 0.9, 1])], None),  # not on a scale to 5
        ([pairs("mine", [10, 50, 90, 100])], None),
        ([pairs("SICK-R"), pairs("STS12")], None),
        ([pairs("SICK-R"), pairs("STS-B")], "STS-B"),
    ],
)
def test_whose_geometry(found: list[StsSet], whose: str | None) -> None:
    protocol, scores = evaluate_sts(Letters(), found)
    assert ("uniformity" in scores) == ("alignment" in scores) == (whose is not None)
    assert (whose or "") in protocol.get("alignment", "")


def test_what_is_missing_is_said() -> None:
    protocol, _ = evaluate_sts(Letters(), StsSets("folder", [pairs()], {"STS12": "sts12.tsv"}))
    assert protocol["data"] == "folder"
    assert protocol["sets that are not there"] == {"STS12": "looked for sts12.tsv"}
    assert "average" not in protocol


def test_options_reach_the_model_only_where_asked_for() -> None:
    model = Letters()
    rows = embed_sentences(model, FIRST, batch_size=3, precision="bf16")
    assert model.options == [{"batch_size": 3, "precision": "bf16"}]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    towers = Towers()
    torch.testing.assert_close(embed_sentences(towers, FIRST, batch_size=3), rows)
    assert towers.sizes == [3, 1]


def test_models_that_cannot_be_judged() -> None:
    class Broken:
        def encode(self, sentences: list[str]) -> np.ndarray:
            return np.full((len(sentences), 2), np.nan)

    with pytest.raises(InputError, match="not finite"):
        judge(Broken(), [pairs()])
    with pytest.raises(InputError, match="object has neither encode nor encode_text"):
        judge(object(), [pairs()])
    with pytest.raises(InputError, match="--precision bf16"):
        judge(Towers(), [pairs()], precision="bf16")


@pytest.mark.parametrize("processes", [2, 9])
def test_each_process_embeds_its_part(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Nine processes share seven sentences: some have none, and must gather all the same."""
    texts = [*FIRST[:3], *SECOND]
    whole = embed_sentences(Letters(), texts)
    parts, asked = [], []
    for rank in range(processes):
        here = slice(7 * rank // processes, 7 * (rank + 1) // processes)
        monkeypatch.setattr(driver.distributed, "part", lambda n, here=here: here)
        monkeypatch.setattr(driver.distributed, "gather_parts", lambda mine: torch.cat([torch.empty(0, 32), *mine]))
        model = Letters()
        parts.append(embed_sentences(model, texts))
        asked += [sentence for call in model.asked for sentence in call]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert asked == texts
