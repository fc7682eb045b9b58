"""Tables of images and captions: what becomes a row, and what is said where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.data.source import Columns, held_out_split, open_pairs, open_source
from xmodal.data.table import Table, read_table, splits
from xmodal.errors import BadSample, InputError

Written = Callable[..., Path]


def pairs(table: Table) -> dict[str, list[str]]:
    return {table.key(row): list(table.texts(row)) for row in range(len(table))}


def message(path: Path, split: str | None = None, columns: Columns | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_table(path, split, columns)
    text = str(caught.value)
    assert text.count("\n") <= 1  # one or two lines
    return text


@pytest.mark.parametrize("image", ["filepath", "image", "image_path", "file_name", "filename", "path", "img", "FILE"])
@pytest.mark.parametrize("caption", ["caption", "title", "text", "name", "description", "sentence"])
def test_usual_names(folder: Path, written: Written, image: str, caption: str) -> None:
    path = written(f"id,{caption},{image}\n7,a dog,0.png\n")
    assert pairs(read_table(path)) == {"0.png": ["a dog"]}


def test_named_columns(folder: Path, written: Written) -> None:
    path = written("where,what,part\n0.png,a,train\n1.png,b,test\n")
    assert pairs(read_table(path, "test", Columns("where", "what", "part"))) == {"1.png": ["b"]}


def test_rows_of_one_image_are_one(folder: Path, written: Written) -> None:
    path = written("filepath,caption\n0.png,b\n1.png,x\n0.png,a\n0.png,b\n./0.png,c\n1.png,\n2.png, \n,y\n")
    table = read_table(path)
    assert pairs(table) == {"0.png": ["b", "a", "c"], "1.png": ["x"]}  # in their order, without doubles and empty ones
    assert table.dropped == {"no image": 1, "no caption": 1}
    assert len(set(table.image_id.tolist())) == 2
    assert table.image_id.dtype == np.int64


def test_several_caption_columns_and_lists(folder: Path, written: Written) -> None:
    several = written("filepath,caption_0,caption_1,caption_2\n0.png,a,b,a\n1.png,c,,\n")
    assert pairs(read_table(several)) == {"0.png": ["a", "b"], "1.png": ["c"]}
    lists = written('filepath,captions\n0.png,"[""a"", ""b""]"\n1.png,[sic] plain\n')
    assert pairs(read_table(lists)) == {"0.png": ["a", "b"], "1.png": ["[sic] plain"]}


def test_a_list_of_captions_that_is_half_right(folder: Path, written: Written) -> None:
    half_an_emoji = written('filepath,captions\n0.png,"[""a \\ud83d"", ""b \\ud83d\\ude00""]"\n')
    assert pairs(read_table(half_an_emoji)) == {"0.png": ["a ?", "b \U0001f600"]}
    for cell in ("[" * 20_000, "[1", '"[1, 2]"'):  # no list of strings: a caption as it stands
        assert pairs(read_table(written(f"filepath,captions\n0.png,{cell}\n"))) == {"0.png": [cell.strip('"')]}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text("filepath,caption\n\t\"0.png;'", max_size=60).map(str.encode))
def test_any_file_is_a_table_or_an_input_error(folder: Path, data: bytes) -> None:
    path = folder / "any.csv"
    for content in (data, b"filepath,caption\n0.png,a\n" + data):
        path.write_bytes(content)
        try:
            assert len(read_table(path)) >= 1
        except InputError:
            continue


def test_splits(folder: Path, written: Written) -> None:
    path = written("filepath,caption,split\n0.png,a,train\n1.png,b,Validation\n2.png,c,dev\n3.png,d,TEST\n")
    assert splits(path, Columns()) == {"train": 1, "val": 2, "test": 1}
    assert pairs(read_table(path, "val")) == {"1.png": ["b"], "2.png": ["c"]}
    assert len(read_table(path)) == 4
    assert "train (1)" in message(path, "unseen")
    assert splits(written("filepath,caption\n0.png,a\n"), Columns()) == {}


def test_pairs_to_train_on_and_to_evaluate_on(folder: Path, written: Written) -> None:
    path = written("filepath,caption,split\n0.png,a,train\n1.png,b,val\n2.png,c,spare\n")
    train, tests = open_pairs(str(path), None)
    assert pairs(train) == {"0.png": ["a"]}  # pyright: ignore[reportArgumentType]
    assert {name: len(test) for name, test in tests.items()} == {"val": 1}
    other = written("filepath,caption\n3.png,d\n", "other.csv")
    train, tests = open_pairs(str(other), None)
    assert (len(train), tests) == (1, {})
    train, tests = open_pairs(str(other), str(path))
    assert (len(train), tests["val"].key(0)) == (1, "1.png")


def test_the_split_to_evaluate_on(folder: Path, written: Written) -> None:
    def held_out(*names: str) -> str | None:
        text = "filepath,caption,split\n" + "".join(f"{i}.png,a,{name}\n" for i, name in enumerate(names))
        return held_out_split(str(written(text)), Columns())

    assert held_out("train", "valid", "testing") == "test"
    assert held_out("train", "dev") == "val"
    assert held_out("train", "spare") is None
    assert held_out_split("glyphs", Columns()) is None
    assert held_out_split("x" * 5000, Columns()) is None
    path = written("filepath,caption,part\n0.png,a,train\n1.png,b,test\n")
    assert held_out_split(str(path), Columns()) is None
    assert held_out_split(str(path), Columns(split="part")) == "test"
    train, tests = open_pairs(str(path), None, Columns(split="part"))
    assert (len(train), {name: test.key(0) for name, test in tests.items()}) == (1, {"test": "1.png"})


def test_paths_beside_the_table_come_before_the_working_folder(
    folder: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = folder / "inside"
    inside.mkdir()
    Image.new("RGB", (8, 8), "blue").save(inside / "0.png")
    path = written(f"filepath,caption\n0.png,blue\n1.png,here\n{folder / '2.png'},whole\n", "inside/t.csv")
    monkeypatch.chdir(folder)
    table = read_table(path)
    assert [table.file(row) for row in range(3)] == [inside / "0.png", Path("1.png"), folder / "2.png"]
    assert not any(isinstance(picture, BadSample) for picture in table.images(np.arange(3)))


def test_bad_images_come_back_as_reasons(folder: Path, written: Written) -> None:
    (folder / "1.png").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    table = read_table(written(f"filepath,caption\n0.png,a\n1.png,b\ngone.png,c\npipe.png,d\n{'x' * 5000},e\n\0,f\n"))
    found = table.images(np.arange(len(table)))
    assert [p.reason if isinstance(p, BadSample) else "" for p in found] == [
        "",
        "no image",
        "missing",
        "not a file",
        "missing",
        "missing",
    ]


def test_fingerprint(folder: Path, written: Written) -> None:
    path = written("filepath,caption\n0.png,a\n1.png,b\n")
    first = read_table(path).fingerprint()
    assert read_table(path).fingerprint() == first
    changed = [written("filepath,caption\n0.png,a\n1.png,c\n", "c.csv")]
    changed.append(written("filepath,caption\n1.png,b\n0.png,a\n", "d.csv"))
    changed.append(written("filepath,caption\n0.png,a\n0.png,b\n", "e.csv"))
    assert len({first, *(read_table(p).fingerprint() for p in changed)}) == 4
    Image.new("RGB", (80, 80)).save(folder / "1.png")
    assert read_table(path).fingerprint() != first


def test_photographs(folder: Path, written: Written) -> None:
    drawings = read_table(written("filepath,caption\n0.png,a\n1.png,b\n"))
    assert not drawings.photographs
    for i in range(3):
        Image.new("RGB", (20, 20)).save(folder / f"{i}.jpg")
    assert read_table(written("filepath,caption\ngone.png,x\n0.jpg,a\n1.jpg,b\n0.png,c\n")).photographs


def test_what_is_said_of_a_table_that_has_nothing(folder: Path, written: Written) -> None:
    assert "no row" in message(written("filepath,caption\n"))
    assert "UTF-8" in message(folder / "0.png")  # a picture for a table
    text = message(written("a,b\n0.png,x\n"))
    assert "a, b" in text
    assert "--image-column" in text
    text = message(written("filepath,words\n0.png,x\n"), columns=Columns(caption="word"))
    assert "'words'" in text
    assert "filepath, words" in text
    assert "--caption-column" in message(written("filepath,b\n0.png,x\n"))
    text = message(written("filepath,caption\ngone.png,x\n"))
    assert "'gone.png'" in text
    assert str(folder) in text
    assert len(message(written(f"filepath,caption\n{'x' * 5000},x\n"))) < 1000


def test_what_is_said_of_a_spec_that_names_nothing(folder: Path, written: Written) -> None:
    written("filepath,caption\n0.png,a\n", "captions.csv")
    os.mkfifo(folder / "pipe.csv")
    assert len(open_source(str(folder))) == 1  # the one table there is
    written("filepath,caption\n0.png,a\n", "more.csv")
    for spec, expected in {
        "glyhps": "'glyphs'",
        "glyphs/unseen_name": "'unseen_names'",
        str(folder / "caption.csv"): "'captions.csv'",
        str(folder): "several tables; name one, such as .*captions.csv",
        str(folder / "nowhere" / "t.csv"): "does not exist",
        str(folder / "pipe.csv"): "no file",
        "x" * 5000: "no file",
    }.items():
        with pytest.raises(InputError, match=expected):
            open_source(spec)
