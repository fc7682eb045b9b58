"""The forms in which pictures and captions come: each is found by looking and gives the same rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.data.forms import find
from xmodal.data.source import Columns, open_pairs, open_source
from xmodal.errors import InputError

TEXTS = {"0.png": ["a dog", "an animal"], "1.png": ["a cat"], "2.png": ["two cats"], "3.png": ["a house"]}
SPLITS = {"0.png": "train", "1.png": "train", "2.png": "val", "3.png": "test"}


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(TEXTS):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / name)


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def records() -> list[dict[str, Any]]:
    return [{"image": name, "captions": texts, "split": SPLITS[name], "size": 3} for name, texts in TEXTS.items()]


def json_records(folder: Path) -> Path:
    pictures(folder)
    return put(folder / "data.json", records())


def json_lines(folder: Path) -> Path:
    pictures(folder)
    return put(folder / "data.jsonl", "\n".join(map(json.dumps, records())) + "\n\n")


def captions_json(folder: Path) -> Path:
    pictures(folder / "images")
    put(folder / "captions.json", {name: texts if len(texts) > 1 else texts[0] for name, texts in TEXTS.items()})
    return folder


def coco(folder: Path) -> Path:
    pictures(folder / "val2017")
    images = [{"id": i, "file_name": name, "license": 1} for i, name in enumerate(TEXTS)]
    notes = [{"image_id": i, "id": 9, "caption": text} for i, texts in enumerate(TEXTS.values()) for text in texts]
    return put(folder / "annotations" / "captions_val2017.json", {"images": images, "annotations": notes, "info": {}})


def karpathy(folder: Path) -> Path:
    pictures(folder / "Flicker8k_Dataset")
    rename = {"train": "restval"}
    images = [
        {
            "filename": name,
            "split": rename.get(SPLITS[name], SPLITS[name]),
            "sentences": [{"raw": f" {text} ", "tokens": text.split(), "sentid": 3} for text in texts],
        }
        for name, texts in TEXTS.items()
    ]
    return put(folder / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})


def folder_pairs(folder: Path) -> Path:
    for name, texts in TEXTS.items():
        inside = folder / SPLITS[name]
        pictures(folder / "all")
        inside.mkdir(exist_ok=True)
        shutil.copy(folder / "all" / name, inside / name)
        put((inside / name).with_suffix(".txt"), "\n".join(texts) + "\n\n")
    shutil.rmtree(folder / "all")
    return folder


def img2dataset_files(folder: Path) -> Path:
    pictures(folder / "00000")
    for name, texts in TEXTS.items():
        put((folder / "00000" / name).with_suffix(".json"), {"caption": texts, "url": "http://127.0.0.1:1/a.jpg"})
    return folder


def metadata(folder: Path) -> Path:
    pictures(folder)
    put(folder / "metadata.jsonl", "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in TEXTS.items()))
    return folder


def metadata_of_splits(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        lines = ["file_name,text"]
        for name, texts in TEXTS.items():
            if SPLITS[name] == split:
                pictures(folder / split)
                lines += [f"{name},{text}" for text in texts]
        put(folder / split / "metadata.csv", "\n".join(lines) + "\n")
    return folder


FORMS: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "records": (json_records, True),
    "lines": (json_lines, True),
    "captions.json": (captions_json, False),
    "COCO captions": (coco, False),
    "Karpathy splits": (karpathy, True),
    "pictures with a text each": (folder_pairs, True),
    "img2dataset": (img2dataset_files, False),
    "imagefolder with metadata": (metadata, False),
    "imagefolder of splits": (metadata_of_splits, True),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_its_pictures_captions_and_splits(form: str, tmp_path: Path) -> None:
    build, has_splits = FORMS[form]
    path = str(build(tmp_path / "data"))

    def told(source: Any) -> dict[str, list[str]]:
        for row in range(len(source)):
            assert source.images(np.array([row]))[0].size == (8, 8)
        return {Path(source.key(row)).name: list(source.texts(row)) for row in range(len(source))}

    assert told(open_source(path)) == TEXTS
    train, tests = open_pairs(path, None)
    if has_splits:
        assert told(train) == {name: TEXTS[name] for name in TEXTS if SPLITS[name] == "train"}
        assert {name: told(source) for name, source in tests.items()} == {"val": {"2.png": TEXTS["2.png"]}}
        assert told(open_source(path, "test")) == {"3.png": TEXTS["3.png"]}
    else:
        assert told(train) == TEXTS
        assert tests == {}


def test_class_folders_say_their_class_in_each_template(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("hot_dog", "cat"):
            pictures(tmp_path / split / kind)
    source = open_source(str(tmp_path), "test")
    assert {source.key(i): list(source.texts(i)) for i in range(len(source))} == {
        **{f"test/cat/{n}": ["a photo of a cat."] for n in TEXTS},
        **{f"test/hot_dog/{n}": ["a photo of a hot dog."] for n in TEXTS},
    }
    put(tmp_path / "templates.txt", "{}\na bad photo of a {}\n")
    put(tmp_path / "classnames.txt", "kitten\nsausage\n")
    source = open_source(str(tmp_path))
    assert len(source) == 16
    assert list(source.texts(0)) == ["kitten", "a bad photo of a kitten"]
    put(tmp_path / "classnames.txt", "kitten\n")
    with pytest.raises(InputError, match="1 names for 2 class folders"):
        open_source(str(tmp_path))


def test_a_folder_of_coco_has_the_splits_of_its_files(tmp_path: Path) -> None:
    for split in ("train", "val"):
        built = coco(tmp_path / split)
        here = tmp_path / "coco"
        shutil.copytree(tmp_path / split / "val2017", here / f"{split}2017")
        put(here / "annotations" / f"captions_{split}2017.json", built.read_text())
    put(here / "annotations" / "instances_val2017.json", "{")
    train, tests = open_pairs(str(here), None)
    assert [train.key(row) for row in range(len(train))] == [f"train2017/{name}" for name in TEXTS]
    assert [list(tests["val"].texts(row)) for row in range(4)] == list(TEXTS.values())
    assert all(picture.size == (8, 8) for picture in tests["val"].images(np.arange(4)))


def test_pictures_beside_two_tables_are_no_class(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    for name in ("train", "val"):
        put(tmp_path / f"{name}.csv", "image,caption\nimages/0.png,a dog\n")
    with pytest.raises(InputError, match=r"several tables; name one, such as .*train.csv"):
        open_source(str(tmp_path))


def test_columns_are_named_in_records_too(tmp_path: Path) -> None:
    pictures(tmp_path)
    told = [{"where": name, "said": texts, "which": "test"} for name, texts in TEXTS.items()]
    path = put(tmp_path / "r.jsonl", "\n".join(map(json.dumps, told)))
    source = open_source(str(path), "test", Columns("where", "said", "which"))
    assert [list(source.texts(i)) for i in range(4)] == list(TEXTS.values())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", "[]", "JSON of no known form"),
        ("a.json", "3", "JSON of no known form"),
        ("a.json", {"images": [], "annotations": []}, "no captions among them"),
        ("a.json", {"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}, "no captions among them"),
        ("a.json", {"images": [{"file_name": "0.png"}]}, "neither annotations"),
        ("a.json", {"0.png": ""}, "no row with a picture and a caption"),
        ("a.json", {"gone.png": "a"}, "None of the 1 images"),
        ("a.json", [{"image": "0.png"}], "no column of captions"),
        ("a.json", [{"image": 3, "caption": None}], "no row with a picture and a caption"),
        ("a.jsonl", '{"image": "0.png", "caption": "a"}\n{', "line 2 is no JSON"),
        ("a.jsonl", "", "is empty"),
    ],
)
def test_what_is_wrong_with_a_json_is_told(name: str, content: Any, message: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    with pytest.raises(InputError, match=message):
        open_source(str(put(tmp_path / name, content)))


def test_a_folder_of_no_form_says_what_is_in_it(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", "x")
    with pytest.raises(InputError, match=r"no known form; in it: notes.txt"):
        open_source(str(tmp_path))
    pictures(tmp_path / "loose")
    with pytest.raises(InputError, match="no known form; in it: 0.png"):
        open_source(str(tmp_path / "loose"))


KEYS = ["images", "annotations", "image", "caption", "file_name", "id", "image_id", "sentences", "raw", "0.png"]
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["0.png", "a cat"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
LISTS = st.lists(JSONS, max_size=3)
COCO = st.fixed_dictionaries({"images": LISTS}, optional={"annotations": LISTS})


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSONS | COCO)
def test_any_json_is_rows_or_an_input_error(tmp_path: Path, content: Any) -> None:
    pictures(tmp_path)
    path = put(tmp_path / "any.json", json.dumps(content))
    try:
        with find(path)(path, Columns()) as listing:
            assert all(isinstance(row.image, str) and isinstance(row.texts, list) for row in listing.rows)
    except InputError:
        return
