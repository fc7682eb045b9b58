"""Pictures judged by their neighbours: who votes, who is judged, what is said when there are no classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from xmodal.data.pictures import NONE
from xmodal.errors import BadSample, InputError
from xmodal.evaluators.evaluate_pictures import RawPixels, evaluate_pictures, voters
from xmodal.evaluators.knn import knn


class Colours:
    """Pictures of the colour of their class with some noise; rows in `bad` can't be read."""

    photographs = False
    dropped: ClassVar[Mapping[str, int]] = {}

    def __init__(self, labels: list[int] | None, n: int = 30, seed: int = 0, bad: tuple[int, ...] = ()) -> None:
        self.name, self.classes, self.bad = f"colours {seed}", [] if labels is None else ["red", "green", "blue"], bad
        self.labels = None if labels is None else np.array(labels)
        kinds = np.zeros(n, dtype=int) if labels is None else np.abs(labels)
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 120, (len(kinds), 6, 6, 3), dtype=np.uint8)
        self.pixels[np.arange(len(kinds)), :, :, kinds] += 90

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: np.ndarray, decoders: Any = None) -> list:
        return [BadSample("damaged", "x") if r in self.bad else self.pixels[r] for r in rows.tolist()]

    def key(self, row: int) -> str:
        return f"row {row}"

    def fingerprint(self) -> str:
        return self.name


TRAIN = [0, 1, 2] * 20
TEST = [0, 1, 2, NONE] * 6


def test_figures_are_those_of_the_functions() -> None:
    train, test = Colours(TRAIN), Colours(TEST, seed=1)
    protocol, scores, table = evaluate_pictures(RawPixels(), train, test, k=5)
    with_class = [i for i, label in enumerate(TEST) if label != NONE]
    rows = [RawPixels().encode_image(list(one.pixels)) for one in (train, test)]
    expected = knn(rows[0], torch.tensor(TRAIN), rows[1][with_class], torch.tensor(TEST)[with_class], k=5)
    for name in ("top1", "macro_recall", "macro_f1"):
        assert scores[f"knn/{name}"]["value"] == pytest.approx(expected[name])
        assert scores[f"knn/{name}"]["low"] <= scores[f"knn/{name}"]["value"] <= scores[f"knn/{name}"]["high"]
    assert expected["top1"] > 0.9
    assert "knn/top5" not in scores  # of three classes it says nothing
    assert table is not None
    assert table.sum() == protocol["pictures with a class"] == 18
    assert (protocol["pictures"], protocol["voters"]) == (24, "60 of the 60 pictures of colours 0")
    assert 1 <= scores["features/effective_rank"]["value"] <= 24


def test_what_cant_be_read_is_left_out() -> None:
    train, test = Colours(TRAIN, bad=(0, 5)), Colours(TEST, seed=1, bad=(1,))
    protocol, _, table = evaluate_pictures(RawPixels(), train, test, k=5)
    assert table is not None
    assert (protocol["unreadable pictures left out"], table.sum()) == (1, 17)
    assert protocol["voters"].startswith("58 of the 60")
    with pytest.raises(InputError, match="No picture of colours 1 can be read: damaged"):
        evaluate_pictures(RawPixels(), train, Colours([0], seed=1, bad=(0,)))


@pytest.mark.parametrize("without", ["train", "test", "both"])
def test_without_classes_there_is_the_spread(without: str) -> None:
    train = Colours(None if without != "test" else TRAIN)
    test = Colours(None if without != "train" else TEST, seed=1)
    protocol, scores, table = evaluate_pictures(RawPixels(), train, test)
    assert set(scores) == {"features/uniformity", "features/effective_rank"}
    assert table is None
    assert "voters" not in protocol


def test_voters() -> None:
    train = Colours([*TRAIN, NONE, NONE])
    assert voters(train).tolist() == list(range(60))
    some = voters(train, 20)
    assert len(set(some.tolist())) == 20
    assert np.array_equal(some, voters(train, 20))
    assert (np.diff(some) > 0).all()
    assert some.max() < 60
    assert len(voters(Colours(None))) == 0
