"""Datasets of pictures: parquet and arrow files, saved folders and folders in the hub's form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from xmodal.data.hf_pictures import HfPictures
from xmodal.data.source import Columns, held_out_split, open_pairs, open_source
from xmodal.errors import BadSample, InputError

TEXTS = [["a dog", "an animal"], ["a cat"], ["", "two cats", "two cats"], [""]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def dataset(**more: list[Any]) -> datasets.Dataset:
    cells = [{"bytes": png(60 * i), "path": None} for i in range(4)]
    return datasets.Dataset.from_dict({"image": cells, "caption": TEXTS, **more}).cast_column("image", datasets.Image())


def told(source: Any) -> list[list[str]]:
    for row in range(len(source)):
        assert source.images(np.array([row]))[0].size == (8, 8)
    return [list(source.texts(row)) for row in range(len(source))]


def in_form(form: str, folder: Path) -> str:
    ours = dataset()
    if form == "parquet":
        ours.to_parquet(folder / "pairs.parquet")
        return str(folder / "pairs.parquet")
    if form == "saved":
        ours.save_to_disk(folder / "saved")
        return str(folder / "saved")
    if form == "arrow":
        ours.save_to_disk(folder / "saved")
        return str(next((folder / "saved").glob("*.arrow")))
    (folder / "hub" / "data").mkdir(parents=True)
    ours.to_parquet(folder / "hub" / "data" / "train-00000-of-00001.parquet")
    return str(folder / "hub") if form == "folder" else f"hf-dataset:{folder / 'hub'}"


@pytest.mark.parametrize("form", ["parquet", "arrow", "saved", "folder", "hf-dataset"])
def test_each_form_gives_its_pictures_and_captions(form: str, tmp_path: Path) -> None:
    source = open_source(in_form(form, tmp_path))
    assert told(source) == [["a dog", "an animal"], ["a cat"], ["two cats"]]
    assert source.dropped == {"no caption": 1}
    assert len(set(source.image_id.tolist())) == 3
    assert not source.photographs
    assert [np.asarray(picture)[0, 0, 0] for picture in source.images(np.array([2, 0]))] == [120, 0]


def test_splits_have_their_names_here(tmp_path: Path) -> None:
    parts = {"train": dataset(), "validation": dataset().select([1]), "test": dataset().select([0])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    train, tests = open_pairs(str(tmp_path / "saved"), None)
    assert len(train) == 3
    assert {name: told(source) for name, source in tests.items()} == {"val": [["a cat"]]}
    assert held_out_split(str(tmp_path / "saved")) == "test"
    assert told(open_source(str(tmp_path / "saved"), "test")) == [["a dog", "an animal"]]
    with pytest.raises(InputError, match="no split 'dev'"):
        open_source(str(tmp_path / "saved"), "dev")


def test_rows_of_one_picture_share_its_id_and_classes_are_texts(tmp_path: Path) -> None:
    ours = dataset(cocoid=[7, 7, 8, 9], other=["x", "y", "z", "u"])
    ours.to_parquet(tmp_path / "a.parquet")
    first, second, third = open_source(str(tmp_path / "a.parquet")).image_id.tolist()
    assert first == second != third
    named = open_source(str(tmp_path / "a.parquet"), None, Columns("image", "other"))
    assert told(named) == [["x"], ["y"], ["z"], ["u"]]
    kinds = ours.remove_columns(["caption", "other"]).add_column("label", [0, 1, 0, 1])
    kinds = kinds.cast_column("label", datasets.ClassLabel(names=["hot_dog", "cat"]))
    kinds.to_parquet(tmp_path / "kinds.parquet")
    source = open_source(str(tmp_path / "kinds.parquet"))
    assert told(source)[:2] == [["a photo of a hot dog."], ["a photo of a cat."]]


def test_pictures_that_cannot_be_read_come_back_as_the_reason(tmp_path: Path) -> None:
    cells = [png(9), b"<html>", None]
    datasets.Dataset.from_dict({"image": cells, "text": ["a", "b", "c"]}).to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    found = source.images(np.arange(3))
    assert [p.reason if isinstance(p, BadSample) else "fine" for p in found] == ["fine", "no image", "empty"]
    assert source.key(1) == "row 1"


def test_the_fingerprint_changes_with_texts_and_pictures(tmp_path: Path) -> None:
    prints = []
    for i, (texts, side) in enumerate([("ab", 8), ("ab", 8), ("ac", 8), ("ab", 64)]):
        rows = {"image": [png(1), png(2, side)], "caption": list(texts)}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{i}.parquet")
        prints.append(open_source(str(tmp_path / f"{i}.parquet")).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_no_picture_is_read_for_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dataset()
    ours.save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    first = source.fingerprint()
    monkeypatch.setattr(type(source), "_encoded", None)
    assert source.fingerprint() == first
    monkeypatch.undo()
    prints = []
    for name in ("a.png", "b.png"):  # pictures that lie elsewhere
        cells = [{"bytes": None, "path": str(tmp_path / name)}, {"bytes": png(1), "path": None}]
        listed = datasets.Dataset.from_dict({"image": cells, "caption": ["a", "b"]})
        prints.append(HfPictures("x", listed.cast_column("image", datasets.Image()), Columns()).fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [png(1)]}, "no column of captions"),
        ({"caption": ["a"]}, "no column of pictures"),
        ({"image": [png(1)], "caption": [" "]}, "no row with a picture and a caption"),
    ],
)
def test_what_lacks_is_told(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / "a.parquet"))


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be opened"):
        open_source(str(tmp_path / "a.parquet"))
