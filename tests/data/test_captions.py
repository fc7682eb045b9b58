"""All captions of a picture at once: in places of their own, encoded once each, with the exact gradient."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.test_batches import Numbers, prepare, tokenize
from xmodal.data.batches import Batches
from xmodal.data.stable_id import stable_id
from xmodal.grad_cache import gradients
from xmodal.method import Progress
from xmodal.objectives import clip_loss


class Uneven(Numbers):
    """Row i has 1 + i % 4 captions."""

    def texts(self, row: int) -> list[str]:
        return [f"{row} {word}" for word in "abcd"[: 1 + row % 4]]


def batches(captions: Any = "all", part: tuple[int, int] = (0, 8), source: Any = None) -> Batches:
    source = source or Uneven(50)
    return Batches(source, batch=8, part=part, seed=0, prepare_images=prepare, tokenize=tokenize, captions=captions)


def test_each_row_has_all_of_its_captions() -> None:
    batch, _ = batches()[2]
    there, k = batch["text_there"], int(batch["text_there"].sum(1).max())
    assert batch["text"].shape == (8, k, 2)
    assert batch["text_id"].shape == there.shape == (8, k)
    for i, row in enumerate(batch["row"].tolist()):
        texts = Uneven(50).texts(row)
        assert there[i].tolist() == [True] * len(texts) + [False] * (k - len(texts))
        assert batch["text_id"][i][there[i]].tolist() == [stable_id(text) for text in texts]
        assert torch.equal(batch["text"][i][there[i]], tokenize(texts))
        assert not batch["text"][i][~there[i]].any()
    assert torch.equal(batch["row"], batches(1)[2][0]["row"])
    assert "text_there" not in batches(1)[2][0]


class Towers(torch.nn.Module):
    """Two linear maps in the place of towers; counts the texts that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(3, 4).double(), torch.nn.Linear(2, 4).double()
        self.log_scale = torch.tensor(1.0, dtype=torch.float64)
        self.texts = 0

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        self.texts += text.shape[:-1].numel()
        rows = {"image": self.image(image.flatten(1).double()), "text": self.text(text.double())}
        return {name: torch.nn.functional.normalize(row, dim=-1) for name, row in rows.items()}


def method() -> Any:
    from xmodal.finetune import Towers as Opened
    from xmodal.train.clip import Config, clip

    opened: Any = Opened(Towers(), None, 1.0)  # pyright: ignore[reportArgumentType]
    return clip(Config(), opened)


def of(data: dict[str, Tensor], micro_batch: int | None = None) -> tuple[float, list[Tensor], int]:
    """Loss, gradients, and how many texts were encoded."""
    trained = method()
    progress = Progress(0, 1, 1, 8)
    loss, _, _, _ = gradients(trained, data, progress, torch.device("cpu"), 0, micro_batch, nullcontext)
    return float(loss), [p.grad for p in trained.parameters()], trained.towers.texts


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_loss_is_that_of_all_pairs_and_padding_is_not_encoded(micro_batch: int | None) -> None:
    batch, _ = batches()[2]
    loss, grads, encoded = of(batch, micro_batch)
    there = batch["text_there"]
    pairs: list[tuple[int, int]] = [(i, k) for i in range(8) for k in range(there.shape[1]) if there[i, k]]
    i, k = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
    if micro_batch is None:
        assert encoded == len(pairs)
    one = {"image": batch["image"][i], "text": batch["text"][i, k]}
    ids: Any = {"image_id": batch["image_id"][i], "text_id": batch["text_id"][i, k]}
    trained = method()
    rows = trained.towers(**one)
    expected = clip_loss(rows["image"], rows["text"], trained.log_scale.exp(), **ids)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    for grad, p in zip(grads, trained.parameters(), strict=True):
        assert torch.allclose(grad, p.grad, rtol=1e-10, atol=1e-14)


def test_with_equal_numbers_it_is_as_if_they_had_been_asked_for() -> None:
    class Even(Uneven):
        def texts(self, row: int) -> list[str]:
            return [f"{row} {word}" for word in "abc"]

    def loss(captions: Any) -> float:
        return of(batches(captions, source=Even(50))[1][0])[0]

    assert loss("all") == pytest.approx(loss(3), rel=1e-12)


def test_parts_pad_to_their_own_most() -> None:
    """The rows of two processes are those of one, whatever each has of padding."""
    whole, _ = batches()[3]
    parts = [batches(part=part)[3][0] for part in ((0, 3), (3, 8))]

    def ids(batch: dict[str, Tensor]) -> list[Sequence[int]]:
        both = zip(batch["text_id"], batch["text_there"], strict=True)
        return [row[there].tolist() for row, there in both]

    assert ids(whole) == [row for part in parts for row in ids(part)]
    assert np.array_equal(whole["row"], torch.cat([part["row"] for part in parts]))
