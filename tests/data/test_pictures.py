"""Pictures with and without classes, in every form; what is held out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xmodal.data.pictures import NONE, OfSource, Part, PictureColumns, hold_out, open_parts, open_pictures, with_classes
from xmodal.errors import BadSample, InputError


def draw(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (red, 9, 9)).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two class folders of four pictures each, one of them deeper, one no picture."""
    for kind in ("cat", "wild_dog"):
        for i in range(3):
            draw(tmp_path / kind / f"{i}.png", i)
    draw(tmp_path / "cat" / "deep" / "a.JPG")
    draw(tmp_path / "wild_dog" / "3.png")
    (tmp_path / "cat" / "notes.md").write_text("no picture")
    return tmp_path


def named(pictures: OfSource | Part, row: int) -> str:
    label = NONE if pictures.labels is None else pictures.labels[row]
    return "" if label == NONE else pictures.classes[label]


class Rows:
    """Pictures that are numbers, called by them."""

    name, photographs = "rows", False
    dropped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, labels: list[int] | None, names: list[str] | None = None) -> None:
        self.labels = None if labels is None else np.array(labels)
        self.classes = [str(i) for i in range(max(labels or [0]) + 1)]
        self.names = names or [f"row {i}" for i in range(len(labels or []))]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, rows: np.ndarray, decoders: Any = None) -> list[int]:
        return rows.tolist()

    def key(self, row: int) -> str:
        return self.names[row]

    def fingerprint(self) -> str:
        return str(self.names)


def test_class_folders(animals: Path) -> None:
    found = open_pictures(str(animals))
    assert found.classes == ["cat", "wild dog"]
    assert [found.key(row) for row in range(4)] == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/deep/a.JPG"]
    assert found.labels is not None
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert [np.asarray(p)[0, 0, 0] for p in found.images(np.array([2, 4]))] == [2, 0]
    assert found.fingerprint() == open_pictures(str(animals)).fingerprint()
    before = found.fingerprint()
    (animals / "cat").rename(animals / "lynx")
    assert open_pictures(str(animals)).fingerprint() != before


def test_classnames(animals: Path) -> None:
    (animals / "classnames.txt").write_text("a cat\na dingo\n")
    assert open_pictures(str(animals)).classes == ["a cat", "a dingo"]
    (animals / "classnames.txt").write_text("a cat\n")
    with pytest.raises(InputError, match="1 names for 2 class folders"):
        open_pictures(str(animals))


def test_splits_are_folders_at_the_top(tmp_path: Path) -> None:
    for split, n in (("train", 5), ("validation", 2)):
        for kind in ("a", "b"):
            for i in range(n):
                draw(tmp_path / split / kind / f"{i}.png")
    draw(tmp_path / "validation" / "b" / "more.png")
    train, val = open_parts(str(tmp_path), None, 0.1)
    assert val is not None
    assert (len(train), len(val), train.classes) == (10, 5, ["a", "b"])
    assert val.labels is not None
    assert val.labels.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="no pictures of split 'test'"):
        open_pictures(str(tmp_path), "test")


def test_a_flat_folder_and_a_nested_one_have_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "flat" / f"{i}.png")
        draw(tmp_path / "nested" / "2024" / f"{i}.png")
    draw(tmp_path / "nested" / "top.png")
    draw(tmp_path / "nested" / ".hidden" / "x.png")
    for name, n in (("flat", 4), ("nested", 5)):
        found = open_pictures(str(tmp_path / name))
        assert (len(found), found.labels, found.classes) == (n, None, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no pictures: no file in it ends in"):
        open_pictures(str(tmp_path / "empty"))


def test_pictures_with_a_text_each_have_no_classes(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        for i in range(2):
            draw(tmp_path / shard / f"{i}.png").with_suffix(".txt").write_text("a caption")
    found = open_pictures(str(tmp_path))
    assert (len(found), found.labels) == (4, None)


def test_a_table(folder: Path, written: Callable[..., Path]) -> None:
    table = written("filepath,label,split\n0.png,b,train\n1.png,a,train\n1.png,a,train\n2.png,,train\n3.png,b,dev\n")
    found = open_pictures(str(table), "train")
    assert [named(found, row) for row in range(len(found))] == ["b", "a", ""]
    train, val = open_parts(str(folder), None, 0.5)  # a folder with one table in it is that table
    assert val is not None
    assert (len(train), len(val)) == (3, 1)
    assert named(val, 0) == "b"
    other = written("filepath,what,label\n0.png,x,b\n1.png,y,a\n", "other.csv")
    assert open_pictures(str(other), None, PictureColumns(label="what")).classes == ["x", "y"]
    with pytest.raises(InputError, match="no column 'wat'; did you mean 'what'"):
        open_pictures(str(other), None, PictureColumns(label="wat"))


def test_a_table_of_captions_has_pictures_without_classes(folder: Path, written: Callable[..., Path]) -> None:
    table = written("filepath,caption\n0.png,one\n0.png,two\n1.png,three\ngone.png,four\n")
    found = open_pictures(str(table))
    assert (len(found), found.labels) == (3, None)
    assert isinstance(found.images(np.array([2]))[0], BadSample)
    listing = written('[{"image": "0.png", "caption": "a"}, {"image": "2.png", "caption": ["b"]}]', "l.json")
    assert [open_pictures(str(listing)).key(row) for row in range(2)] == ["0.png", "2.png"]


def test_none_of_a_tables_pictures_is_there(written: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="None of the 2 images"):
        open_pictures(str(written("filepath,label\nx.png,a\ny.png,b\n")))


def encoded(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (red, 9, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["class label", "numbers", "words", "none"])
def test_parquet(kind: str, tmp_path: Path) -> None:
    import datasets

    told = {
        "class label": ([1, 0, -1], datasets.ClassLabel(names=["cat", "wild_dog"])),
        "numbers": ([7, 3, None], datasets.Value("int32")),
        "words": (["z", "a", None], datasets.Value("string")),
    }
    columns = {"image": [{"bytes": encoded(i), "path": None} for i in range(3)]}
    features = {"image": datasets.Image()}
    if kind != "none":
        columns["label"], features["label"] = told[kind]
    file = tmp_path / "p.parquet"
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)
    found = open_pictures(str(file))
    if kind == "none":
        assert (found.labels, found.classes) == (None, [])
    else:
        assert found.labels is not None
        assert found.labels.tolist() == [1, 0, NONE]
        assert found.classes == {"class label": ["cat", "wild dog"], "numbers": ["3", "7"], "words": ["a", "z"]}[kind]
    assert [np.asarray(p)[0, 0, 0] for p in found.images(np.array([2, 0]))] == [2, 0]
    assert found.key(2) == "row 2"


def test_tar_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("0.png", encoded(1)), ("0.txt", b"a"), ("1.png", encoded(2)), ("1.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = open_pictures(str(tmp_path / "s.tar"))
    assert (len(found), found.labels) == (2, None)


def test_glyphs() -> None:
    train, val = open_parts("glyphs", None, 0.1)
    assert val is not None
    assert val.name == "glyphs/unseen_typeface"
    assert train.classes == val.classes == sorted(train.classes)
    assert train.labels is not None
    row = next(row for row in range(len(train)) if train.key(row).endswith("CYRILLIC CAPITAL LETTER IO"))
    assert train.classes[train.labels[row]] == "cyrillic"
    assert 0 < (train.labels == NONE).mean() < 0.5


def test_a_spec_that_names_nothing() -> None:
    with pytest.raises(InputError, match="No data 'nowhere'"):
        open_pictures("nowhere")


@given(st.lists(st.integers(-1, 5), min_size=2, max_size=80), st.floats(0.01, 0.9))
def test_held_out_of_every_class(labels: list[int], fraction: float) -> None:
    whole = Rows(labels)
    rest, held = hold_out(whole, fraction)
    assert sorted([*rest.rows, *held.rows]) == list(range(len(labels)))
    for label in set(labels):
        n, out = labels.count(label), int((held.labels == label).sum())
        assert n == 1 or 1 <= out < n
        assert abs(out - fraction * n) <= 1
    assert [rest.key(i) for i in range(len(rest))] == [whole.key(int(row)) for row in rest.rows]
    assert np.array_equal(hold_out(whole, fraction)[1].rows, held.rows)


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_a_picture_that_is_added_moves_at_most_one_other(n: int, new: int) -> None:
    names = [f"{i}.png" for i in range(n)]
    held = {names[row] for row in hold_out(Rows(None, names), 0.3)[1].rows}
    more = [f"new {new}.png", *names]
    then = {more[row] for row in hold_out(Rows(None, more), 0.3)[1].rows} - {more[0]}
    assert len(held ^ then) <= 1


def test_labels_of_another_set_become_numbers_of_ours() -> None:
    other = Rows([0, 1, 2, NONE])
    other.classes = ["dog", "cat", "cow"]
    ours = with_classes(other, ["cat", "dog"])
    assert ours.labels is not None
    assert ours.labels.tolist() == [1, 0, NONE, NONE]
    assert with_classes(ours, ["cat", "dog"]) is ours
    with pytest.raises(InputError, match="rows has other classes than what is trained on: dog, cat, cow, …; not car"):
        with_classes(other, ["car"])


def test_a_part_has_a_fingerprint_of_its_own() -> None:
    whole = Rows([0, 0, 1, 1])
    parts = [Part(whole, np.array(rows)) for rows in ([0, 1], [0, 2], [0, 1])]
    prints = [part.fingerprint() for part in parts]
    assert prints[0] == prints[2] != prints[1]
    assert prints[0] != whole.fingerprint()
