"""Neighbours of the same topic against every order of ties, TF-IDF against scikit-learn, and the driver."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.prose import Prose, versions
from xmodal.errors import InputError
from xmodal.evaluators import topics as module
from xmodal.evaluators.tf_idf import tf_idf
from xmodal.evaluators.topics import ceiling, chance_shares, evaluate_topics, neighbour_shares, topic_neighbours

RNG = np.random.default_rng


def at(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1) * np.arange(1, len(radians) + 1)[:, None]


# topic_neighbours


def test_by_eye() -> None:
    # 0 and 10 are each other's nearest, then 30, whose nearest is 10; 90 and 100 are far from all.
    rows, topics = at(0, 10, 30, 90, 100), [0, 0, 1, 1, 1]
    shares = neighbour_shares(rows, topics, (1, 2))
    assert shares[1].tolist() == [1, 1, 0, 1, 1]
    assert shares[2].tolist() == [0.5, 0.5, 0, 1, 1]  # 30 has 10 and 0 nearest, 90 and 100 have each other and 30
    assert topic_neighbours(rows, topics, (1, 2)) == {
        "same_topic@1": pytest.approx(0.8),
        "same_topic@2": pytest.approx(0.6),
        "chance/same_topic@1": pytest.approx((2 * 1 + 3 * 2) / 5 / 4),
        "chance/same_topic@2": pytest.approx((2 * 1 + 3 * 2) / 5 / 4),
    }


def in_every_order(rows: np.ndarray, topics: Sequence[int], k: int) -> np.ndarray:
    """The mean over all orders in which the sentences could stand, the nearest first and a tie as they stand."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    similarity = np.round(unit @ unit.T, 9)
    found = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        nearest = [sorted(order, key=lambda j, i=i: -similarity[i, j])[:k] for order in permutations(others)]
        found.append(np.mean([[topics[j] == topics[i] for j in order] for order in nearest]))
    return np.array(found)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 2)), min_size=6, max_size=6),
    st.permutations([0, 0, 0, 1, 1, 1]) | st.permutations([0, 0, 1, 1, 2, 2]),
    st.integers(1, 5),
)
def test_ties_like_every_order(rows: list[tuple[int, int]], topics: list[int], k: int) -> None:
    numbers = np.array(rows, dtype=float)
    expected = in_every_order(numbers, topics, k)
    for each in (numbers, torch.from_numpy(numbers).float(), torch.from_numpy(numbers).to_sparse()):
        np.testing.assert_allclose(neighbour_shares(each, topics, (k,))[k], expected, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_rows_that_are_all_equal_score_as_chance(value: float) -> None:
    topics = RNG(0).integers(0, 5, 60)
    shares = neighbour_shares(np.full((60, 7), value, dtype=np.float32), topics, (1, 10, 59))
    for of_k in shares.values():
        np.testing.assert_allclose(of_k, chance_shares(topics), atol=1e-12)


def test_chance_is_what_random_rows_have() -> None:
    topics = RNG(0).choice(8, 1500, p=np.arange(1, 9) / 36)
    scores = topic_neighbours(RNG(1).normal(size=(1500, 40)), topics, (10,))
    sizes = np.bincount(topics)
    assert scores["chance/same_topic@10"] == pytest.approx((sizes / 1500 * (sizes - 1) / 1499).sum())
    assert scores["same_topic@10"] == pytest.approx(scores["chance/same_topic@10"], abs=0.012)


def test_perfect_rows_reach_the_ceiling() -> None:
    topics = np.repeat(np.arange(4), [2, 3, 5, 10])
    rows = np.eye(4)[topics]
    for k in (1, 4, 19):
        assert topic_neighbours(rows, topics, (k,))[f"same_topic@{k}"] == pytest.approx(ceiling(topics, k))
    assert ceiling(topics, 4) == pytest.approx((2 * 1 / 4 + 3 * 2 / 4 + 5 + 10) / 20)


@pytest.mark.parametrize("sparse", [False, True])
def test_tiles_change_nothing_and_hold_no_square(monkeypatch: pytest.MonkeyPatch, sparse: bool) -> None:
    rows = torch.from_numpy(RNG(0).integers(0, 3, (203, 5)))
    rows, topics = rows.to_sparse() if sparse else rows, RNG(1).integers(0, 6, 203)
    whole = neighbour_shares(rows, topics, (1, 10))
    sizes = []
    products = module._products

    def noted(*arguments: Any) -> torch.Tensor:
        tile = products(*arguments)
        sizes.append(tile.numel())
        return tile

    monkeypatch.setattr(module, "TILE", 203 * 16)
    monkeypatch.setattr(module, "_products", noted)
    tiled = neighbour_shares(rows, topics, (1, 10))
    assert sizes == [203 * 16] * 12 + [203 * 11]
    for k in whole:
        np.testing.assert_array_equal(tiled[k], whole[k])


ROWS = np.eye(4)


@pytest.mark.parametrize(
    ("rows", "topics", "ks", "said"),
    [
        (ROWS[0], [0, 0, 1, 1], (1,), r"must be \(n, d\)"),
        (ROWS, [0, 0, 0], (1,), "one length, not 4 and 3"),
        (ROWS, [[0, 0, 1, 1]], (1,), r"topics must be \(n,\) long"),
        (ROWS, [0.0, 0, 1, 1], (1,), r"topics must be \(n,\) long"),
        (ROWS, [0, 0, 0, 7], (1,), "topic 7 has one sentence"),
        (ROWS[:0], torch.zeros(0, dtype=torch.long), (1,), "no sentences"),
        (ROWS, [0, 0, 1, 1], (4,), "1 … 3"),
        (ROWS, [0, 0, 1, 1], (0,), "1 … 3"),
        (ROWS, [0, 0, 1, 1], (), "1 … 3"),
        (ROWS * np.nan, [0, 0, 1, 1], (1,), "not finite"),
        (torch.full((4, 4), torch.inf).to_sparse(), [0, 0, 1, 1], (1,), "not finite"),
    ],
)
def test_what_cannot_be_scored(rows: Any, topics: Any, ks: Sequence[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        topic_neighbours(rows, topics, ks)


# TF-IDF


def test_tf_idf_by_eye() -> None:
    # Of two training texts "cat" is in both, "red" and "old" in one each.
    rows = tf_idf(["Red red CAT", "a dog", "cat"], ["red cat", "old cat"]).to_dense()
    idf_red = np.log(3 / 2) + 1
    cat, old, red = rows.T.tolist()  # in the order of the alphabet
    assert old == [0, 0, 0]
    assert cat[1:] == [0, 1]  # "a" is too short, "dog" unknown: a row of zeros
    assert red[0] / cat[0] == pytest.approx(2 * idf_red)
    assert rows[0].norm().item() == pytest.approx(1)


TEXTS = ["The naïve café's x_1 isn't 42!", "the THE the cat", "", "a b c", "dogs and cats and dogs", "Strasse STRAẞE"]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], TEXTS[:1]])
def test_tf_idf_is_scikit_learn_s(texts: list[str]) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    for training, asked in ((texts, TEXTS), (Prose().sentences[:2000], Prose("test").sentences[:500] + TEXTS)):
        theirs = text.TfidfVectorizer().fit(training).transform(asked).toarray()
        ours = tf_idf(asked, training)
        assert ours.is_sparse
        np.testing.assert_allclose(ours.to_dense().numpy(), theirs, atol=1e-6)


def test_tf_idf_without_words() -> None:
    assert tf_idf(["one two", ""], ["", "!"]).shape == (2, 0)
    assert tf_idf([], ["one two"]).shape == (0, 2)


# The driver


class Letters:
    """Rows of how often a sentence has each letter."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def encode(self, sentences: list[str], **options: Any) -> np.ndarray:
        self.asked.append({"sentences": sentences, **options})
        return np.stack([np.bincount([ord(c) % 32 for c in s.lower()], minlength=32) for s in sentences])


class Towers:
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(Letters().encode(list(texts))).float()


def small(sentences: Sequence[str], topics: Sequence[int], name: str = "prose/test") -> Any:
    """What the driver needs of prose."""
    names = [f"topic {t}" for t in range(max(topics) + 1)]
    return SimpleNamespace(
        name=name, sentences=list(sentences), topics=np.array(topics), topic_names=names, fingerprint=lambda: "f00"
    )


ANIMALS = ["a dog runs", "the dog is running", "a dog ran away", "some cats sleep", "the cats are asleep", "cats slept"]
TESTED = small(ANIMALS, [0, 0, 1, 1, 1, 0])  # two are not where their words are
TRAINING = small(["dog runs", "cats sleep", "the end"], [0, 1, 0], "prose")


def test_scores_are_those_of_the_arrays() -> None:
    model = Letters()
    protocol, scores = evaluate_topics(model, TESTED, TRAINING, ks=(1, 2))
    assert model.asked == [{"sentences": ANIMALS}]
    assert list(scores) == [f"{whose}same_topic@{k}" for whose in ("", "tf_idf/", "chance/") for k in (1, 2)]
    ours = topic_neighbours(Letters().encode(ANIMALS), TESTED.topics, (1, 2))
    theirs = topic_neighbours(tf_idf(ANIMALS, TRAINING.sentences), TESTED.topics, (1, 2))
    for k in (1, 2):
        assert scores[f"same_topic@{k}"]["value"] == pytest.approx(ours[f"same_topic@{k}"])
        assert scores[f"tf_idf/same_topic@{k}"]["value"] == pytest.approx(theirs[f"same_topic@{k}"])
        assert scores[f"chance/same_topic@{k}"]["value"] == pytest.approx(2 / 5)
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"]
    assert scores["same_topic@1"]["low"] < scores["same_topic@1"]["high"]
    assert (protocol["sentences"], protocol["topics"], protocol["data"]) == (6, 2, "prose/test")
    assert protocol["most that can be had"] == "100.0% @1, 100.0% @2"
    assert protocol["tf_idf"].startswith("words of 3 sentences of prose,")
    assert (protocol["versions"], protocol["fingerprint"]) == (versions(), "f00")
    json.dumps([protocol, scores], allow_nan=False)


def test_options_and_other_models() -> None:
    model = Letters()
    whole = evaluate_topics(model, TESTED, TRAINING, ks=(1,), batch_size=2, precision="bf16")
    assert model.asked == [{"sentences": ANIMALS, "batch_size": 2, "precision": "bf16"}]
    assert evaluate_topics(Towers(), TESTED, TRAINING, ks=(1,)) == whole


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: SimpleNamespace(encode=lambda s: np.full((len(s), 2), np.nan)), "not finite"),
        (object, "neither encode nor encode_text"),
    ],
)
def test_models_that_cannot_be_judged(model: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_topics(model(), TESTED, TRAINING, ks=(1,))


def test_on_the_prose_of_this_python() -> None:
    """Words tell the topic far better than letters do, and these better than chance."""
    protocol, scores = evaluate_topics(Letters(), Prose("test"))
    values = {name: score["value"] for name, score in scores.items()}
    assert 0.3 < values["tf_idf/same_topic@1"] < 0.55
    assert 0.15 < values["tf_idf/same_topic@10"] < 0.3
    assert 0.015 < values["chance/same_topic@1"] == values["chance/same_topic@10"] < 0.04
    for k in (1, 10):
        assert 2 * values[f"chance/same_topic@{k}"] < values[f"same_topic@{k}"] < values[f"tf_idf/same_topic@{k}"]
    assert protocol["versions"].startswith("Python 3.")
