"""Batches: a function of seed and step, whatever the workers, the processes and the broken files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from xmodal.data.augment import AUGMENTATIONS, DRAWS, augmentation
from xmodal.data.batches import Batches, Quarantine, Skipped, chosen
from xmodal.data.stable_id import stable_id
from xmodal.data.stand_ins import MOST_TRIES
from xmodal.data.table import Table, read_table
from xmodal.data.views import views
from xmodal.data.workers import loader
from xmodal.encoders.preparation import Preparation
from xmodal.errors import BadSample, InputError


class Numbers:
    """A source whose picture is its row's number, with three captions each; the rows in `bad` can't be read."""

    name, photographs = "numbers", False
    dropped: ClassVar = {}

    def __init__(self, n: int, bad: Sequence[int] = ()) -> None:
        self.n, self.bad = n, frozenset(bad)
        self.image_id = np.arange(n, dtype=np.int64) * 10

    def __len__(self) -> int:
        return self.n

    def images(self, rows: np.ndarray) -> list[Any]:
        return [
            BadSample("damaged", f"row {row}") if row in self.bad else np.full((2, 2), row, dtype=np.uint8)
            for row in rows.tolist()
        ]

    def texts(self, row: int) -> list[str]:
        return [f"{row} {word}" for word in ("a", "b", "c")]

    def key(self, row: int) -> str:
        return f"number {row}"

    def fingerprint(self) -> str:
        return str((self.n, sorted(self.bad)))


def prepare(pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
    """A pixel that shows the picture, and two that show its random draws."""
    assert draws.shape == (len(pictures), DRAWS)
    view = torch.zeros(len(pictures), 3, 1, 1, dtype=torch.uint8)
    view[:, 0, 0, 0] = torch.tensor([int(p[0, 0]) for p in pictures])
    view[:, 1:, 0, 0] = torch.from_numpy((draws[:, :2] * 256).astype(np.uint8))
    return view


def tokenize(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[int(text.split()[0]), ord(text[-1])] for text in texts])


def batches(
    source: Numbers, batch: int = 8, part: tuple[int, int] | None = None, seed: int = 0, captions: int = 1
) -> Batches:
    part = part or (0, batch)
    return Batches(
        source, batch=batch, part=part, seed=seed, prepare_images=prepare, tokenize=tokenize, captions=captions
    )


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch() -> None:
    source = Numbers(50)
    batch, skipped = batches(source)[3]
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((8, 3, 1, 1), torch.uint8),
        "text": ((8, 2), torch.int64),
        "image_id": ((8,), torch.int64),
        "text_id": ((8,), torch.int64),
        "row": ((8,), torch.int64),
    }
    assert skipped == []
    rows = batch["row"]
    assert torch.equal(batch["image"][:, 0, 0, 0].long(), rows)  # picture, text and ids are of one row
    assert torch.equal(batch["text"][:, 0], rows)
    assert torch.equal(batch["image_id"], rows * 10)
    texts = [f"{row} {chr(letter)}" for row, letter in batch["text"].tolist()]
    assert batch["text_id"].tolist() == [stable_id(text) for text in texts]


def test_an_epoch_has_every_row_once_at_most_and_captions_change() -> None:
    data = batches(Numbers(50))
    assert data.steps_per_epoch == 6
    rows = [torch.cat([data[step][0]["row"] for step in range(e * 6, e * 6 + 6)]).tolist() for e in range(2)]
    assert [len(set(epoch)) for epoch in rows] == [48, 48]
    assert rows[0] != rows[1]
    letters = torch.cat([data[step][0]["text"][:, 1] for step in range(60)])
    counts = torch.bincount(letters - ord("a"))
    assert len(counts) == 3
    assert counts.min() > 120  # of 160 expected


def test_seed_and_step_are_all_it_depends_on() -> None:
    data = batches(Numbers(50, bad=[3, 4]))
    last_first = {step: data[step] for step in reversed(range(12))}
    for step in range(12):
        batch, skipped = batches(Numbers(50, bad=[3, 4]))[step]
        assert same(batch, last_first[step][0])
        assert skipped == last_first[step][1]
    assert not same(batches(Numbers(50), seed=1)[0][0], batches(Numbers(50))[0][0])


@pytest.mark.parametrize("processes", [2, 4])
def test_parts_put_together_are_the_batch_of_one_process(processes: int) -> None:
    source, share = Numbers(50, bad=[1, 20, 33, 34]), 8 // processes
    for step in range(12):
        whole, skipped = batches(source)[step]
        parts = [batches(source, part=(r * share, (r + 1) * share))[step] for r in range(processes)]
        assert same(whole, {name: torch.cat([part[name] for part, _ in parts]) for name in whole})
        assert [one for _, told in parts for one in told] == skipped


def test_a_bad_row_is_replaced_and_named() -> None:
    good, broken = batches(Numbers(50)), batches(Numbers(50, bad=[7]))
    found = 0
    for step in range(6):
        (before, _), (after, skipped) = good[step], broken[step]
        for place in range(8):
            if before["row"][place] == 7:
                found += 1
                assert skipped == [Skipped(7, "number 7", "damaged", "row 7")]
                assert after["row"][place] != 7
                assert after["image"][place, 0, 0, 0] == after["row"][place]
                assert after["text"][place, 0] == after["row"][place]
            else:  # nothing else moves
                assert all(torch.equal(before[name][place], after[name][place]) for name in before)
        assert skipped == [] or 7 in before["row"]
    assert found == 1


def test_half_of_all_rows_may_be_bad() -> None:
    bad = set(range(0, 50, 2))
    for step in range(12):
        batch, skipped = batches(Numbers(50, bad=list(bad)))[step]
        assert not bad & set(batch["row"].tolist())
        assert {one.row for one in skipped} <= bad


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image(workers: int) -> None:
    """The message reaches the user as it is, also from a worker."""
    data = batches(Numbers(20, bad=range(20)))
    with pytest.raises(InputError) as caught:
        next(iter(loader(data, 0, 2, workers)))
    message = str(caught.value)
    assert message.startswith(f"No readable image in {MOST_TRIES} tries")
    assert "\n" not in message


def test_fewer_rows_than_a_batch() -> None:
    with pytest.raises(InputError, match="fewer than one global batch of 8"):
        batches(Numbers(7))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_keeps_the_order(workers: int) -> None:
    data = batches(Numbers(50, bad=[3, 4, 5]))
    found = list(loader(data, 4, 15, workers))
    assert [step for step, _, _ in found] == list(range(4, 15))
    for step, batch, skipped in found:
        expected, told = data[step]
        assert same(batch, expected)
        assert skipped == told


def test_a_loader_may_be_left_early_and_be_empty() -> None:
    data = batches(Numbers(50))
    steps = loader(data, 0, 100, 2)
    assert next(steps)[0] == 0
    steps.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list(loader(data, 5, 5, 0)) == []


def test_batches_can_be_sent_to_a_process() -> None:
    data = pickle.loads(pickle.dumps(batches(Numbers(50, bad=[3]))))
    assert same(data[2][0], batches(Numbers(50, bad=[3]))[2][0])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """24 files with two captions each, of which three are no pictures."""
    lines = ["filepath,caption_0,caption_1"]
    for i in range(24):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        lines.append(f"{path.name},{i} a,{i} b")
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:300])
    (tmp_path / "11.png").unlink()
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return read_table(tmp_path / "t.csv")


def of_files(table: Table, part: tuple[int, int] = (0, 8), name: str = "photo") -> Batches:
    view = augmentation(name, Preparation(16, 16))
    return Batches(table, batch=8, part=part, seed=5, prepare_images=view, tokenize=tokenize)


def test_files_in_parts_in_workers_and_from_the_middle(table: Table) -> None:
    """The same pixels, captions and substitutes, bit for bit."""
    whole = {step: (batch, skipped) for step, batch, skipped in loader(of_files(table), 0, 9)}
    for step, batch, skipped in loader(of_files(table), 5, 9, workers=2):
        assert same(batch, whole[step][0])
        assert skipped == whole[step][1]
    for step in (0, 4, 8):
        parts = [of_files(table, part)[step] for part in ((0, 2), (2, 4), (4, 8))]
        assert same(whole[step][0], {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]})
        assert [one for _, told in parts for one in told] == whole[step][1]
    told = {(one.key, one.reason) for _, skipped in whole.values() for one in skipped}
    assert told == {("3.png", "no image"), ("7.png", "truncated"), ("11.png", "missing")}
    texts = {tuple(text) for batch, _ in whole.values() for text in batch["text"].tolist()}
    assert {letter for _, letter in texts} == {ord("a"), ord("b")}
    assert {row for row, _ in texts} == set(range(24)) - {3, 7, 11}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_of_files_can_be_sent_to_a_process(table: Table, name: str) -> None:
    data = of_files(table, name=name)
    assert same(pickle.loads(pickle.dumps(data))[1][0], data[1][0])


def test_no_file_can_be_read(table: Table) -> None:
    for path in table.folder.glob("*.png"):
        path.write_text("no picture")
    with pytest.raises(InputError, match=f"No readable image in {MOST_TRIES} tries; the last was .*png"):
        next(iter(loader(of_files(table), 0, 1)))


def one(row: int, reason: str = "damaged") -> Skipped:
    return Skipped(row, f"{row}.png", reason, "why")


def test_quarantine_counts_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    quarantine = Quarantine(path, 0.5, 10)
    first = quarantine.new([one(3), one(3), one(4, "missing")], 1)
    assert sorted(line["row"] for line in first) == [3, 4]
    quarantine.take(first + quarantine.new([one(4, "missing")], 1), write=True)  # as two processes would tell it
    assert quarantine.new([one(3), one(5)], 2) == [
        {"step": 2, "row": 5, "key": "5.png", "reason": "damaged", "detail": "why"}
    ]
    assert quarantine.counts == {"damaged": 1, "missing": 1}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [3, 4]
    assert set(lines[0]) == {"row", "key", "reason", "detail", "step"}


def test_quarantine_writes_only_where_told(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "skipped.jsonl", 0.5, 10)
    quarantine.take(quarantine.new([one(1)], 1), write=False)
    assert not quarantine.path.exists()
    assert quarantine.counts == {"damaged": 1}


def test_a_kill_while_the_list_is_written_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of earlier steps are not met again in the epoch: lines that are lost stay lost."""
    quarantine = Quarantine(tmp_path / "skipped.jsonl", 0.5, 10)
    quarantine.take(quarantine.new([one(1)], 1), write=True)

    def killed(path: Path, text: str, **options: Any) -> None:
        path.open("w").write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        quarantine.take(quarantine.new([one(2)], 2), write=True)
    assert [line["row"] for line in Quarantine(quarantine.path, 0.5, 10, until=2).lines] == [1]


@pytest.mark.parametrize(("rows", "limit", "allowed"), [(1000, 0.01, 10), (50, 0.01, 1), (50, 0.0, 1), (10, 1.0, 10)])
def test_quarantine_limit(tmp_path: Path, rows: int, limit: float, allowed: int) -> None:
    quarantine = Quarantine(tmp_path / "skipped.jsonl", limit, rows)
    quarantine.take(quarantine.new([one(row) for row in range(allowed)], 1), write=True)
    quarantine.check()
    quarantine.take(quarantine.new([one(rows, "missing")], 2), write=True)
    with pytest.raises(InputError) as caught:
        quarantine.check()
    message = str(caught.value)
    for part in (f"{allowed + 1} of {rows}", "--max-bad-fraction", f"damaged ({allowed})", str(quarantine.path)):
        assert part in message
    assert message.count("\n") <= 1


def test_quarantine_goes_on_from_its_file(tmp_path: Path) -> None:
    """On a resume, rows found after the checkpoint are found again; a line torn by a kill is no reason to stop."""
    path = tmp_path / "skipped.jsonl"
    first = Quarantine(path, 0.5, 10)
    for step in (1, 2, 3):
        first.take(first.new([one(step)], step), write=True)
    path.write_text(path.read_text() + '{"step": 4, "ro')
    again = Quarantine(path, 0.5, 10, until=2)
    assert [line["row"] for line in again.lines] == [1, 2]
    assert [line["row"] for line in again.new([one(2), one(3)], 3)] == [3]


@given(st.integers(1, 6), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
def test_captions_are_taken_once_each_before_any_is_taken_again(m: int, numbers: list[float]) -> None:
    texts = [f"text {i}" for i in range(m)]
    found = chosen(texts, np.array(numbers))
    assert len(found) == len(numbers)
    for a in range(0, len(found), m):
        assert len(set(found[a : a + m])) == len(found[a : a + m])


def test_several_captions_of_a_row_stand_beside_each_other() -> None:
    told, first = batches(Numbers(50), captions=3)[2][0], batches(Numbers(50))[2][0]
    assert told["text"].shape == (8, 3, 2)
    assert torch.equal(told["row"], first["row"])
    assert torch.equal(told["text"][:, 0], first["text"])  # the first is the one that would be drawn alone
    for row, ids, tokens in zip(told["row"].tolist(), told["text_id"].tolist(), told["text"].tolist(), strict=True):
        assert set(ids) == {stable_id(f"{row} {word}") for word in "abc"}
        assert [stable_id(f"{number} {chr(last)}") for number, last in tokens] == ids


@pytest.mark.parametrize("name", ["photo", "none"])
def test_views_beside_the_image_are_cut_from_the_same_reading(table: Table, name: str) -> None:
    """And are what they are of pictures that are decoded whole."""
    view: Any = augmentation(name, Preparation(16, 16))
    beside = views("simclr", Preparation(16, 16))

    def batch(prepare_images: Any) -> tuple[dict[str, Tensor], list[Skipped]]:
        options: Any = {"prepare_images": prepare_images, "tokenize": tokenize, "views": beside}
        return Batches(table, batch=8, part=(0, 8), seed=5, **options)[0]

    (cut, skipped), (whole, told) = batch(view), batch(lambda pictures, numbers: view(pictures, numbers))
    assert cut["views"].shape == (8, 2, 3, 16, 16)
    assert same(cut, whole)
    assert skipped == told
