"""Several sources as one: any forms, rows by their part, splits of each, each as often as its weight says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_shards import png, shards
from xmodal.data.batches import Batches
from xmodal.data.orders import order_of
from xmodal.data.source import form_of, open_pairs, open_source, splits
from xmodal.errors import BadSample, InputError


def table(folder: Path, rows: int, header: str = "image,caption,split") -> Path:
    folder.mkdir()
    lines = [header]
    for i in range(rows):
        (folder / f"{i}.png").write_bytes(png(100 + i))
        lines.append(f"{i}.png,of {folder.name} {i},{'val' if i == 0 else 'train'}")
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


def texts(source: Any) -> list[str]:
    return [text for row in range(len(source)) for text in source.texts(row)]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Five rows of a table, one of them val; seven of shards; five of another table with the same names."""
    return f"{table(tmp_path / 'a', 5)}::{shards(tmp_path / 's')}::{table(tmp_path / 'b', 5)}"


def test_rows_are_those_of_the_parts(spec: str) -> None:
    source = open_source(spec)
    assert texts(source) == [
        *(f"of a {i}" for i in range(5)),
        *(f"number {i}" for i in range(7)),
        *(f"of b {i}" for i in range(5)),
    ]
    pictures = source.images(np.array([16, 5, 0, 11, 4]))
    assert [np.asarray(p)[0, 0, 0] for p in pictures] == [104, 0, 100, 6, 104]
    assert len(set(source.image_id.tolist())) == 17  # 0.png of a and of b are two pictures
    assert source.key(5) == f"{spec.split('::')[1]}: 00000.tar:000000"
    assert form_of(spec) == "table and tar shards, 2 of them and table"


def test_splits_are_those_of_each_part_and_without_any_all_is_trained_on(spec: str) -> None:
    assert splits(spec) == ["val", "train"]
    train, tests = open_pairs(spec, None)
    assert len(train) == 4 + 7 + 4
    assert texts(tests["val"]) == ["of a 0", "of b 0"]
    with pytest.raises(InputError, match="no rows of split 'test'; it has train, val"):
        open_source(spec, "test")


def test_an_epoch_has_each_source_as_often_as_its_weight_says(spec: str) -> None:
    source, _ = open_pairs(spec, None, weights=[1, 2, 0.5])
    assert len(order_of(source)) == 4 + 14 + 2

    def view(pictures: Any, draws: Any) -> torch.Tensor:
        return torch.zeros(len(pictures), 3, 1, 1)

    def tokens(texts: Any) -> torch.Tensor:
        return torch.zeros(len(texts), 1)

    data = Batches(source, batch=5, part=(0, 5), seed=0, prepare_images=view, tokenize=tokens)
    assert data.steps_per_epoch == 4
    seen = Counter(row for step in range(4) for row in data[step][0]["row"].tolist())
    assert [seen[row] for row in range(4)] == [1] * 4
    assert [seen[row] for row in range(4, 11)] == [2] * 7
    assert sum(seen[row] for row in range(11, 15)) == 2


def test_a_row_that_cannot_be_read_is_named_by_its_part(spec: str) -> None:
    source = open_source(spec)
    Path(spec.split("::")[0]).with_name("3.png").write_bytes(b"")
    found = source.images(np.array([2, 3]))
    assert isinstance(found[1], BadSample)
    assert source.key(3).endswith("a/t.csv: 3.png")


def test_the_fingerprint_is_of_all_parts(spec: str) -> None:
    first = open_source(spec).fingerprint()
    assert open_source(spec, weights=[1, 2, 3]).fingerprint() == first  # which are a setting, not data
    path = Path(spec.split("::")[2])
    path.write_text(path.read_text() + "\n0.png,more,train")
    assert open_source(spec).fingerprint() != first


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1, 2], "2 numbers, and there are 3 sources"), ([1, 2, 3, 4], "4 numbers, and there are 3")],
)
def test_weights_are_one_for_each(weights: list[float], message: str, spec: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec, weights=weights)


def test_a_weight_that_leaves_nothing_of_a_source_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"--weights 0\.001 leaves an epoch none of the"):
        open_source(spec, weights=[1, 0.001, 1])


def test_a_part_that_is_not_there_is_named(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No data '.*nowhere.csv'"):
        open_source(f"{spec}::{tmp_path / 'nowhere.csv'}")


def test_json_and_built_in_data_are_parts_too(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(3))
    (tmp_path / "r.jsonl").write_text(json.dumps({"image": "x.png", "caption": "a cat"}))
    source = open_source(f"glyphs/unseen_names::{tmp_path / 'r.jsonl'}", weights=[0.1, 4])
    assert source.texts(len(source) - 1) == ["a cat"]
    rows = order_of(source).rows(np.arange(len(order_of(source))), 0, 0)
    assert (rows == len(source) - 1).sum() == 4
