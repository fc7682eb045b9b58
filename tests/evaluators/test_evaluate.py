"""From a model and a source to protocol and scores; two processes against one are in test_two_processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from xmodal.errors import BadSample, InputError
from xmodal.evaluators.embed import embed_images, embed_pairs, embed_texts
from xmodal.evaluators.evaluate import evaluate_retrieval, evaluate_zero_shot, together
from xmodal.evaluators.retrieval import retrieval

NAMES = ("red", "green", "blue", "white")
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=np.uint8)


@dataclass
class Colours:
    """A model whose rows are a picture's mean colour, and the colour that a text names; it keeps what it saw."""

    seen: list[int] = field(default_factory=list)
    read: list[str] = field(default_factory=list)

    def encode_image(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        self.seen.append(len(images))
        return torch.tensor(np.stack([np.asarray(image).mean((0, 1)) for image in images]), requires_grad=True)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        return np.stack([sum(COLOURS[n].astype(float) for n, name in enumerate(NAMES) if name in t) for t in texts])


@dataclass
class Memory:
    """A source of one-coloured pictures, some of which can't be read."""

    colours: list[int]
    captions: list[list[str]]
    image_id: Any = None
    bad: tuple[int, ...] = ()
    name: str = "memory"
    photographs: bool = False
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = range(len(self.colours)) if self.image_id is None else self.image_id
        self.image_id = np.array(ids, dtype=np.int64)
        self.labels = np.array(self.colours)

    def __len__(self) -> int:
        return len(self.colours)

    def images(self, rows: np.ndarray) -> list[Any]:
        return [
            BadSample("truncated", "at 3") if row in self.bad else np.tile(COLOURS[self.colours[row]], (4, 4, 1))
            for row in rows
        ]

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[row]

    def key(self, row: int) -> str:
        return str(row)

    def fingerprint(self) -> str:
        return ""


def source(**changes: Any) -> Memory:
    captions = [["red", "a red one"], ["green"], ["blue"], ["white", "a red one"], ["so red"]]
    given = {"colours": [0, 1, 2, 3, 0], "captions": captions, "image_id": [70, 10, 20, 30, 70]}
    return Memory(**{**given, **changes})


def test_each_picture_and_each_text_once() -> None:
    model = Colours()
    found = embed_pairs(model, source(), batch_size=3)
    assert found.rows.tolist() == [0, 1, 2, 3]  # row 4 is row 0's picture
    assert found.texts == ["red", "a red one", "green", "blue", "white", "so red"]
    assert model.seen == [3, 1]
    assert model.read == found.texts
    assert found.pairs.tolist() == [[0, 0], [0, 1], [0, 5], [1, 2], [2, 3], [3, 1], [3, 4]]
    assert found.first_image.tolist() == [0, 0, 1, 2, 3, 0]
    assert found.unreadable == 0
    for rows in (found.image, found.text):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert rows.dtype == torch.float32
        assert not rows.requires_grad


def test_unreadable_pictures_are_left_out_and_counted() -> None:
    found = embed_pairs(Colours(), source(bad=(0, 2)), batch_size=2)
    assert found.rows.tolist() == [1, 3]
    assert found.texts == ["green", "white", "a red one"]  # "a red one" belongs to a picture that is left as well
    assert found.pairs.tolist() == [[0, 0], [1, 1], [1, 2]]
    assert found.unreadable == 2
    protocol, _ = evaluate_retrieval(Colours(), source(bad=(0, 2)))
    assert protocol["unreadable images left out"] == 2
    assert (protocol["images"], protocol["texts"], protocol["pairs"]) == (2, 3, 3)


def test_nothing_can_be_read() -> None:
    nothing = source(bad=(0, 1, 2, 3, 4))
    with pytest.raises(InputError, match=r"No image of memory can be read: truncated \(4\)"):
        evaluate_retrieval(Colours(), nothing)
    with pytest.raises(InputError, match="No image of memory can be read: truncated"):
        evaluate_zero_shot(Colours(), nothing, NAMES, ["{}"])


def test_a_batch_without_a_picture() -> None:
    rows, readable, reasons = embed_images(Colours(), source(bad=(0, 1)).images, np.arange(4), batch_size=2)
    assert rows.shape == (2, 3)
    assert readable.tolist() == [False, False, True, True]
    assert reasons == {"truncated": 2}
    assert embed_texts(Colours(), []).shape[0] == 0


def test_retrieval_with_protocol() -> None:
    embedded = embed_pairs(Colours(), source())
    protocol, scores = evaluate_retrieval(Colours(), source(), ks=(1, 2), batch_size=2)
    assert {name: score["value"] for name, score in scores.items()} == pytest.approx(
        retrieval(embedded.image, embedded.text, pairs=embedded.pairs, ks=(1, 2))
    )
    assert scores["image_to_text/R@1"]["value"] == 1
    assert scores["text_to_image/R@1"]["value"] == 1
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"]
    assert set(protocol) == {
        "task", "data", "images", "texts", "pairs", "unreadable images left out", "gallery", "similarity", "interval",
        "xmodal",
    }  # fmt: skip
    assert protocol["data"] == "memory"
    assert "95%" in protocol["interval"]
    assert "1000 resamples" in protocol["interval"]
    json.dumps([protocol, scores], allow_nan=False)


def test_zero_shot_with_protocol() -> None:
    labelled = source(bad=(1,), colours=[0, 1, 2, 3, 0])
    labelled.labels = np.array([0, 1, 2, 2, 0])  # the white picture is called blue
    protocol, scores, table = evaluate_zero_shot(
        Colours(), labelled, NAMES, ["a {} thing", "{}"], templates_name="mine", ks=(1, 2), batch_size=2
    )
    assert scores["top1"]["value"] == 0.75
    assert scores["macro_recall"]["value"] == 0.75  # red 1, blue 1/2; green and white don't occur
    assert list(scores) == ["top1", "top2", "macro_precision", "macro_recall", "macro_f1"]
    assert table.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"]
    assert set(protocol) == {
        "task", "data", "images", "unreadable images left out", "classes", "templates", "similarity", "interval",
        "xmodal",
    }  # fmt: skip
    assert (protocol["images"], protocol["unreadable images left out"], protocol["classes"]) == (4, 1, 4)
    assert protocol["templates"].startswith("2 (mine), ")
    json.dumps([protocol, scores, table.tolist()], allow_nan=False)


def test_several_as_one() -> None:
    results = {"a": evaluate_retrieval(Colours(), source()), "b": evaluate_retrieval(Colours(), source(bad=(1,)))}
    protocol, scores = together(results)
    assert protocol["data"] == "memory"
    assert protocol["a"]["images"] == 4
    assert protocol["b"]["images"] == 3
    assert "images" not in protocol
    assert scores["b/text_to_image/R@10"] == results["b"][1]["text_to_image/R@10"]
    assert together({}) == ({}, {})
