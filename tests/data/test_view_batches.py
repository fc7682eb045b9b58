"""Batches of views: functions of seed and step, whatever the workers, the processes and the broken pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xmodal.data.class_order import ClassOrder
from xmodal.data.order import draws
from xmodal.data.patches import PatchViews
from xmodal.data.pictures import open_pictures
from xmodal.data.view_batches import ViewBatches
from xmodal.data.views import views
from xmodal.data.workers import loader
from xmodal.encoders.preparation import Preparation
from xmodal.errors import BadSample, InputError

VIEWS = views("swav", Preparation(16, 16))


class Greys:
    """Pictures of one grey each, that of their row; the rows in `bad` can't be read."""

    name, photographs = "greys", False
    dropped: ClassVar[Mapping[str, int]] = {}

    def __init__(self, n: int, bad: Sequence[int] = (), classes: int = 0) -> None:
        self.n, self.bad, self.classes = n, frozenset(bad), [str(i) for i in range(classes)]
        self.labels = np.arange(n) % classes if classes else None

    def __len__(self) -> int:
        return self.n

    def images(self, rows: np.ndarray, decoders: Any = None) -> list[Image.Image | np.ndarray | BadSample]:
        return [
            BadSample("damaged", f"row {row}") if row in self.bad else np.full((8, 9), row, dtype=np.uint8)
            for row in rows.tolist()
        ]

    def key(self, row: int) -> str:
        return f"grey {row}"

    def fingerprint(self) -> str:
        return str((self.n, sorted(self.bad)))


def batches(source: Greys, part: tuple[int, int] = (0, 8), order: ClassOrder | None = None) -> ViewBatches:
    return ViewBatches(source, batch=8, part=part, seed=0, views=VIEWS, order=order)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch() -> None:
    data = batches(Greys(50, classes=5))
    batch, skipped = data[3]
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "views": ((8, 2, 3, 16, 16), torch.uint8),
        "crops": ((8, 6, 3, 6, 6), torch.uint8),
        "row": ((8,), torch.int64),
        "label": ((8,), torch.int64),
    }
    assert (data.steps_per_epoch, skipped) == (6, [])
    assert torch.equal(batch["label"], batch["row"] % 5)
    assert "label" not in batches(Greys(50))[3][0]


def test_an_epoch_has_every_picture_once_and_epochs_have_other_views() -> None:
    data = batches(Greys(48))
    rows = [torch.cat([data[step][0]["row"] for step in range(e * 6, e * 6 + 6)]) for e in range(2)]
    assert sorted(rows[0].tolist()) == sorted(rows[1].tolist()) == list(range(48))
    assert not torch.equal(rows[0], rows[1])
    step = int((rows[1] == rows[0][0]).nonzero()[0, 0])
    first, again = data[0][0]["views"][0], data[6 + step // 8][0]["views"][step % 8]
    assert not torch.equal(first, again)


@pytest.mark.parametrize("order", ["all", "classes"])
def test_parts_and_workers_make_the_batch_of_one_process(order: str) -> None:
    source = Greys(50, bad=[3, 4], classes=5)
    by_class = ClassOrder(source.labels, 8, 2) if order == "classes" and source.labels is not None else None
    whole = [batches(source, order=by_class)[step] for step in range(7)]
    parts = [batches(source, (a, a + 4), by_class) for a in (0, 4)]
    for step, (batch, skipped) in enumerate(whole):
        halves = [part[step] for part in parts]
        assert same({name: torch.cat([half[0][name] for half in halves]) for name in batch}, batch)
        assert halves[0][1] + halves[1][1] == skipped
    for (step, batch, skipped), expected in zip(loader(parts[1], 0, 7, 2), whole, strict=True):
        assert same(batch, {name: value[4:] for name, value in expected[0].items()})
        assert skipped == parts[1][step][1]


def test_a_stand_in_has_its_own_row_and_label() -> None:
    data = batches(Greys(40, bad=range(20), classes=4))
    for step in range(5):
        batch, skipped = data[step]
        assert (batch["row"] >= 20).all()
        assert torch.equal(batch["label"], batch["row"] % 4)
        assert {one.reason for one in skipped} <= {"damaged"}
    with pytest.raises(InputError, match="No readable image in 100 tries"):
        batches(Greys(40, bad=range(40)))[0]


def test_classes_and_pictures() -> None:
    source = Greys(48, classes=6)
    assert source.labels is not None
    data = batches(source, order=ClassOrder(source.labels, 8, 2))
    assert data.steps_per_epoch == 6
    for step in range(12):
        labels = data[step][0]["label"].view(4, 2)
        assert torch.equal(labels[:, 0], labels[:, 1])
        assert len(set(labels[:, 0].tolist())) == 4


def test_a_batch_that_is_more_than_the_data() -> None:
    with pytest.raises(InputError, match="fewer than one global batch"):
        batches(Greys(7))


def test_views_that_are_cut_from_files_are_those_of_one_process(tmp_path: Path) -> None:
    """Of a folder with a file that is bad, whatever the parts."""
    for row in range(6):
        picture = Image.fromarray(np.random.default_rng(row).integers(0, 256, (5, 6, 3), dtype=np.uint8))
        picture.resize((300, 250), Image.Resampling.BICUBIC).save(tmp_path / f"{row}.jpg")
    whole_file = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole_file[: len(whole_file) // 2])
    source = open_pictures(str(tmp_path))

    def made(part: tuple[int, int] = (0, 6), exact: bool = False) -> ViewBatches:
        several = views("moco_v2", Preparation(16, 16), exact)
        return ViewBatches(source, batch=6, part=part, seed=0, views=several)

    (fast, skipped), (exact, expected) = made()[0], made(exact=True)[0]
    assert skipped == expected
    assert {one.reason for one in skipped} == {"truncated"}
    assert torch.equal(fast["row"], exact["row"])
    assert not torch.equal(fast["views"], exact["views"])
    assert (fast["views"].float() - exact["views"].float()).abs().mean() < 0.5
    halves = [made(part)[0][0] for part in ((0, 3), (3, 6))]
    assert same({name: torch.cat([half[name] for half in halves]) for name in fast}, fast)


def test_patches_that_are_cut_from_files(tmp_path: Path) -> None:
    for row in range(4):
        picture = Image.fromarray(np.random.default_rng(row).integers(0, 256, (70, 90, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{row}.png")
    source = open_pictures(str(tmp_path))
    patches: Any = PatchViews(Preparation(64, 64))
    data = ViewBatches(source, batch=4, part=(0, 4), seed=0, views=patches)
    batch, _ = data[0]
    numbers = draws(0, 0, np.arange(4), PatchViews.draws)
    assert torch.equal(batch["patches"], patches(source.images(batch["row"].numpy()), numbers)["patches"])
