"""Accuracies by eye, per-class figures against scikit-learn, all of it against CLIP_benchmark."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as peer
from sklearn import metrics
from torch import Tensor
from torch.nn.functional import normalize

from xmodal.evaluators.zeroshot import class_embeddings, confusion, macro, per_class, predictions, zero_shot


def problem(n: int, c: int, seed: int = 0, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    classes = torch.randn(c, d, generator=g)
    labels = torch.randint(0, c, (n,), generator=g)
    image = classes[labels] + 1.5 * torch.randn(n, d, generator=g)
    return normalize(image, dim=1), normalize(classes, dim=1), labels


def test_by_eye() -> None:
    classes = np.eye(6)
    image = np.array(
        [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],  # of class 0: first
            [0.9, 0.8, 0.2, 0.3, 0.4, 0.5],  # of class 1: second
            [0.6, 0.7, 0.5, 0.4, 0.3, 0.2],  # of class 5: last
            [0.6, 0.7, 0.5, 0.4, 0.3, 0.2],  # of class 4: fifth
        ]
    )
    of_label, predicted = predictions(image, classes, [0, 1, 5, 4])
    assert of_label.tolist() == [1, 2, 6, 5]
    assert predicted.tolist() == [0, 0, 1, 1]
    scores = zero_shot(image, classes, [0, 1, 5, 4])
    assert (scores["top1"], scores["top5"]) == (0.25, 0.75)
    # Class 0: precision 1/2, recall 1; classes 1, 4 and 5: nothing right; classes 2 and 3 don't occur.
    assert scores["macro_precision"] == 0.5 / 4
    assert scores["macro_recall"] == 1 / 4
    assert scores["macro_f1"] == pytest.approx(2 / 3 / 4)


def test_confusion_by_eye() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    table = confusion(labels, predicted, 4)
    assert table.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    figures = per_class(table)
    assert figures["precision"].tolist() == [1 / 2, 1 / 2, 1, 0]
    assert figures["recall"].tolist() == [1 / 2, 1, 2 / 3, 0]
    assert figures["f1"].tolist() == pytest.approx([1 / 2, 2 / 3, 4 / 5, 0])
    assert figures["support"].tolist() == [2, 1, 3, 0]
    assert macro(table)["macro_recall"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)  # the last class does not occur
    twice = confusion(labels, predicted, 4, np.array([2.0, 0, 1, 1, 1, 1]))
    assert twice.tolist() == [[2, 0, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_small_types_of_labels(dtype: type) -> None:
    image, classes, labels = problem(300, 100)
    expected = zero_shot(image, classes, labels)
    assert zero_shot(image, classes, labels.numpy().astype(dtype)) == expected
    assert zero_shot(image, classes, labels.tolist()) == expected
    assert confusion(labels.numpy().astype(dtype), labels.numpy().astype(dtype), 100).trace() == 300


@pytest.mark.parametrize("seed", range(4))
def test_like_scikit_learn(seed: int) -> None:
    image, classes, labels = problem(80, 30, seed)  # some classes don't occur, some are never answered
    _, predicted = predictions(image, classes, labels)
    right = labels.numpy()
    mine = per_class(confusion(right, predicted, 30))
    theirs = metrics.precision_recall_fscore_support(right, predicted, labels=range(30), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        np.testing.assert_allclose(mine[name], values, rtol=1e-15)
    occurs = np.unique(right)
    theirs = metrics.precision_recall_fscore_support(right, predicted, labels=occurs, zero_division=0, average="macro")
    scores = zero_shot(image, classes, labels)
    for name, value in zip(("macro_precision", "macro_recall", "macro_f1"), theirs, strict=False):
        assert scores[name] == pytest.approx(value, rel=1e-14)
    np.testing.assert_array_equal(
        confusion(right, predicted, 30), metrics.confusion_matrix(right, predicted, labels=range(30))
    )


@pytest.mark.parametrize("c", [2, 3, 7, 33])
def test_ties_are_lost_in_every_figure(c: int) -> None:
    g = torch.Generator().manual_seed(c)
    image = normalize(torch.randn(50, 65, generator=g), dim=1)
    row = normalize(torch.randn(1, 65, generator=g), dim=1)
    labels = torch.arange(50) % c
    of_label, predicted = predictions(image, row.repeat(c, 1), labels)
    assert (of_label == c).all()
    assert (predicted != labels.numpy()).all()  # else argmax, which takes the first, would be right for class 0
    scores = zero_shot(image, row.repeat(c, 1), labels, ks=(1,))
    assert set(scores.values()) == {0.0}


def test_autocast_changes_nothing() -> None:
    image, classes, labels = problem(2000, 200)
    expected, _ = predictions(image, classes, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = predictions(image, classes, labels)
    np.testing.assert_array_equal(found, expected)


def test_a_long_row_makes_no_ties_of_others() -> None:
    image, classes, labels = problem(200, 30)
    expected, _ = predictions(image, classes, labels)
    image[0] *= 1e6
    np.testing.assert_array_equal(predictions(image, classes, labels)[0], expected)


def test_two_classes_of_one_name() -> None:
    classes = torch.eye(4)
    classes[3] = classes[1]
    of_label, predicted = predictions(torch.eye(4)[[0, 1, 2, 1]], classes, [0, 1, 2, 3])
    assert of_label.tolist() == [1, 2, 1, 2]
    assert predicted.tolist() == [0, 3, 2, 1]


def test_fewer_than_five_classes() -> None:
    scores = zero_shot(np.eye(3), np.eye(3), [1, 0, 2])
    assert (scores["top1"], scores["top5"]) == (pytest.approx(1 / 3), 1.0)
    assert set(zero_shot(np.ones((2, 2)), np.ones((1, 2)), [0, 0]).values()) == {1.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randint(-3, 4, (40, 5), generator=g).to(dtype)
    classes = torch.randint(-3, 4, (7, 5), generator=g).to(dtype)
    labels = torch.randint(0, 7, (40,), generator=g)
    expected = zero_shot(image.float().numpy(), classes.float().numpy(), labels.numpy())
    assert zero_shot(image.requires_grad_(), classes, labels) == expected


def test_class_embeddings_are_normalised_meant_and_normalised() -> None:
    rows = {"a x": [2.0, 0.0], "the x": [0.0, 1.0], "a y": [3.0, 0.0], "the y": [5.0, 0.0]}
    asked: list[str] = []

    def encode(prompts: list[str]) -> list[list[float]]:
        asked.extend(prompts)
        return [rows[prompt] for prompt in prompts]

    found = class_embeddings(encode, ["x", "y"], ["a {}", "the {}"])
    assert asked == ["a x", "the x", "a y", "the y"]
    half = 2**-0.5
    torch.testing.assert_close(found, torch.tensor([[half, half], [1.0, 0.0]]))
    literal = [np.mean([np.array(rows[f"{t} {c}"]) / np.linalg.norm(rows[f"{t} {c}"]) for t in ("a", "the")], 0)
               for c in "xy"]  # fmt: skip
    np.testing.assert_allclose(found, np.array([mean / np.linalg.norm(mean) for mean in literal]), rtol=1e-6)


def test_braces_in_a_class_name_stay() -> None:
    seen: list[str] = []
    class_embeddings(lambda prompts: seen.extend(prompts) or torch.eye(2), ["{}", "{0}"], ["a {}."])
    assert seen == ["a {}.", "a {0}."]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((np.eye(3), np.eye(4), [0, 1, 2]), r"\(n, d\) and \(c, d\), not \(3, 3\) and \(4, 4\)"),
        ((np.eye(3)[0], np.eye(3), [0]), r"not \(3,\) and \(3, 3\)"),
        ((np.eye(3), np.eye(3), [0, 1]), r"labels must be \(3,\) whole numbers in 0 … 2, not \(2,\)"),
        ((np.eye(3), np.eye(3), [0, 1, 3]), r"in 0 … 2, not \(3,\) torch.int64 in 0 … 3"),
        ((np.eye(3), np.eye(3), [0, -1, 2]), "in -1 … 2"),
        ((np.eye(3), np.eye(3), [0.0, 1.0, 2.0]), "torch.float32"),
        ((np.eye(3) * np.nan, np.eye(3), [0, 1, 2]), "not finite"),
        ((np.eye(3)[:0], np.eye(3), np.zeros(0, dtype=int)), r"must have rows, not \(0, 3\) and \(3, 3\)"),
    ],
)
def test_errors_name_what_is_wrong(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        zero_shot(*arguments)


class Prepared:
    """A model whose pictures are row numbers, and whose texts are numbers that a tokenizer gave them."""

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.text, self.numbers = image, text, {}

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.numbers.setdefault(text, len(self.numbers)) for text in texts])

    def encode_image(self, numbers: Tensor) -> Tensor:
        return self.image[numbers]

    def encode_text(self, numbers: Tensor) -> Tensor:
        return self.text[numbers]


class Loader:
    """Batches, and the classes where CLIP_benchmark looks for them."""

    def __init__(self, labels: Tensor, classes: list[str]) -> None:
        self.labels, self.dataset = labels, SimpleNamespace(classes=classes)

    def __iter__(self) -> Any:
        numbers = torch.arange(len(self.labels))
        return zip(numbers.split(32), self.labels.split(32), strict=True)


@pytest.mark.parametrize("seed", range(3))
def test_like_clip_benchmark_to_the_last_digit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1.6.2 calls float() on arrays of one number, which NumPy 2.4 refuses.
    monkeypatch.setattr(peer, "float", lambda array: array.item(), raising=False)
    g = torch.Generator().manual_seed(seed)
    classes, templates = [f"class {i}" for i in range(12)], ["a {}", "the {}", "some {}"]
    text = torch.randn(12, 1, 20, generator=g) + 0.5 * torch.randn(12, 3, 20, generator=g)
    labels = torch.randint(0, 12, (100,), generator=g)
    image = text.mean(1)[labels] + 2 * torch.randn(100, 20, generator=g)
    model = Prepared(image, text.flatten(0, 1))
    theirs = peer.evaluate(
        model,
        Loader(labels, classes),
        model.tokenize,
        classes,
        [template.replace("{}", "{c}") for template in templates],
        "cpu",
        amp=False,
    )
    rows = class_embeddings(lambda prompts: model.encode_text(model.tokenize(prompts)), classes, templates)
    torch.testing.assert_close(
        rows, peer.zero_shot_classifier(model, model.tokenize, classes, [t.replace("{}", "{c}") for t in templates],
                                        "cpu", amp=False).T,
    )  # fmt: skip
    mine = zero_shot(normalize(image, dim=1), rows, labels)
    assert 0 < mine["top1"] < mine["top5"] < 1
    assert mine["top1"] == theirs["acc1"]
    assert mine["top5"] == theirs["acc5"]
    assert mine["macro_recall"] == pytest.approx(theirs["mean_per_class_recall"], rel=1e-15)
