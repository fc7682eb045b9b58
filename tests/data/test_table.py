"""Tables as people have them: what is read, and what is said where nothing can be read."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.data.source import Columns, open_pairs, open_source
from xmodal.data.table import Table, held_out_split, read_labelled, read_table, splits
from xmodal.errors import BadSample, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def pairs(table: Table) -> dict[str, list[str]]:
    return {table.key(row): list(table.texts(row)) for row in range(len(table))}


def message(path: Path, split: str | None = None, columns: Columns | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_table(path, split, columns)
    text = str(caught.value)
    assert text.count("\n") <= 1  # one or two lines
    return text


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_separators(folder: Path, separator: str) -> None:
    path = written(folder, f"filepath{separator}caption\n0.png{separator}a dog\n1.png{separator}a cat\n")
    assert pairs(read_table(path)) == {"0.png": ["a dog"], "1.png": ["a cat"]}


@pytest.mark.parametrize("image", ["filepath", "image", "image_path", "file_name", "filename", "path", "img", "FILE"])
@pytest.mark.parametrize("caption", ["caption", "title", "text", "name", "description", "sentence"])
def test_usual_names(folder: Path, image: str, caption: str) -> None:
    path = written(folder, f"id,{caption},{image}\n7,a dog,0.png\n")
    assert pairs(read_table(path)) == {"0.png": ["a dog"]}


def test_named_columns(folder: Path) -> None:
    path = written(folder, "where,what,part\n0.png,a,train\n1.png,b,test\n")
    assert pairs(read_table(path, "test", Columns("where", "what", "part"))) == {"1.png": ["b"]}


def test_rows_of_one_image_are_one(folder: Path) -> None:
    path = written(folder, "filepath,caption\n0.png,b\n1.png,x\n0.png,a\n0.png,b\n./0.png,c\n1.png,\n2.png, \n,y\n")
    table = read_table(path)
    assert pairs(table) == {"0.png": ["b", "a", "c"], "1.png": ["x"]}  # in their order, without doubles and empty ones
    assert table.dropped == {"no image": 1, "no caption": 1}
    assert len(set(table.image_id.tolist())) == 2
    assert table.image_id.dtype == np.int64


def test_several_caption_columns_and_lists(folder: Path) -> None:
    several = written(folder, "filepath,caption_0,caption_1,caption_2\n0.png,a,b,a\n1.png,c,,\n")
    assert pairs(read_table(several)) == {"0.png": ["a", "b"], "1.png": ["c"]}
    lists = written(folder, 'filepath,captions\n0.png,"[""a"", ""b""]"\n1.png,[sic] plain\n')
    assert pairs(read_table(lists)) == {"0.png": ["a", "b"], "1.png": ["[sic] plain"]}


def test_a_list_of_captions_that_is_half_right(folder: Path) -> None:
    half_an_emoji = written(folder, 'filepath,captions\n0.png,"[""a \\ud83d"", ""b \\ud83d\\ude00""]"\n')
    assert pairs(read_table(half_an_emoji)) == {"0.png": ["a ?", "b \U0001f600"]}
    for cell in ("[" * 20_000, "[1", '"[1, 2]"'):  # no list of strings: a caption as it stands
        assert pairs(read_table(written(folder, f"filepath,captions\n0.png,{cell}\n"))) == {"0.png": [cell.strip('"')]}


def test_byte_order_mark_line_ends_and_gzip(folder: Path) -> None:
    path = written(folder, "\ufefffilepath,caption\r\n0.png,a\r\n")
    assert pairs(read_table(path)) == {"0.png": ["a"]}
    packed = folder / "t.tsv.gz"
    packed.write_bytes(gzip.compress("filepath\tcaption\n0.png\tcafé\n".encode()))
    assert pairs(read_table(packed)) == {"0.png": ["café"]}
    packed.write_bytes(gzip.compress(b"filepath\tcaption\n" + os.urandom(99).hex().encode())[:-20])
    assert "end-of-stream" in message(packed)


def test_quotes(folder: Path) -> None:
    path = written(folder, 'filepath,caption\n0.png,"a ""big"", old\ndog"\n')
    assert pairs(read_table(path)) == {"0.png": ['a "big", old\ndog']}


def test_a_stray_quote_swallows_nothing(folder: Path) -> None:
    """csv takes all lines up to the next quote for one caption, and says nothing."""
    rows = ["0.png", '"a dog'], ["1.png", "a cat"], ["2.png", 'a "cow"'], ["3.png", '"end']
    tabs = written(folder, "filepath\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert pairs(read_table(tabs)) == {name: [text] for name, text in rows}
    commas = written(folder, "filepath,caption\n1.png,fine\n" + "".join(",".join(row) + "\n" for row in rows))
    assert "line 3" in message(commas)


def test_an_unquoted_comma_cuts_no_caption(folder: Path) -> None:
    assert "line 2: 3 columns" in message(written(folder, "filepath,caption\n0.png,a dog, a cat\n"))
    assert pairs(read_table(written(folder, "filepath,caption\n0.png,a dog,,\n"))) == {"0.png": ["a dog"]}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(str.strip).filter(bool), min_size=1, max_size=6
    ),
    separator=st.sampled_from(",\t;|"),
)
def test_what_csv_writes_is_read_back(folder: Path, texts: list[str], separator: str) -> None:
    path = folder / "written.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(["filepath", "caption"])
        writer.writerows(("0.png", text) for text in texts)
    assert pairs(read_table(path)) == {"0.png": list(dict.fromkeys(texts))}


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


def test_splits(folder: Path) -> None:
    path = written(folder, "filepath,caption,split\n0.png,a,train\n1.png,b,Validation\n2.png,c,dev\n3.png,d,TEST\n")
    assert splits(path, Columns()) == {"train": 1, "val": 2, "test": 1}
    assert pairs(read_table(path, "val")) == {"1.png": ["b"], "2.png": ["c"]}
    assert len(read_table(path)) == 4
    assert "train (1)" in message(path, "unseen")
    assert splits(written(folder, "filepath,caption\n0.png,a\n"), Columns()) == {}


def test_pairs_to_train_on_and_to_evaluate_on(folder: Path) -> None:
    path = written(folder, "filepath,caption,split\n0.png,a,train\n1.png,b,val\n2.png,c,spare\n")
    train, tests = open_pairs(str(path), None)
    assert pairs(train) == {"0.png": ["a"]}  # pyright: ignore[reportArgumentType]
    assert {name: len(test) for name, test in tests.items()} == {"val": 1}
    other = written(folder, "filepath,caption\n3.png,d\n", "other.csv")
    train, tests = open_pairs(str(other), None)
    assert (len(train), tests) == (1, {})
    train, tests = open_pairs(str(other), str(path))
    assert (len(train), tests["val"].key(0)) == (1, "1.png")


def test_the_split_to_evaluate_on(folder: Path) -> None:
    def held_out(*names: str) -> str | None:
        text = "filepath,caption,split\n" + "".join(f"{i}.png,a,{name}\n" for i, name in enumerate(names))
        return held_out_split(str(written(folder, text)), Columns())

    assert held_out("train", "valid", "testing") == "test"
    assert held_out("train", "dev") == "val"
    assert held_out("train", "spare") is None
    assert held_out_split("glyphs", Columns()) is None
    assert held_out_split("x" * 5000, Columns()) is None
    path = written(folder, "filepath,caption,part\n0.png,a,train\n1.png,b,test\n")
    assert held_out_split(str(path), Columns()) is None
    assert held_out_split(str(path), Columns(split="part")) == "test"
    train, tests = open_pairs(str(path), None, Columns(split="part"))
    assert (len(train), {name: test.key(0) for name, test in tests.items()}) == (1, {"test": "1.png"})


def test_paths_beside_the_table_come_before_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = folder / "inside"
    inside.mkdir()
    Image.new("RGB", (8, 8), "blue").save(inside / "0.png")
    path = written(inside, f"filepath,caption\n0.png,blue\n1.png,here\n{folder / '2.png'},whole\n")
    monkeypatch.chdir(folder)
    table = read_table(path)
    assert [table.path(row) for row in range(3)] == [inside / "0.png", Path("1.png"), folder / "2.png"]
    assert not any(isinstance(picture, BadSample) for picture in table.images(np.arange(3)))


def test_bad_images_come_back_as_reasons(folder: Path) -> None:
    (folder / "1.png").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    table = read_table(
        written(folder, f"filepath,caption\n0.png,a\n1.png,b\ngone.png,c\npipe.png,d\n{'x' * 5000},e\n\0,f\n")
    )
    found = table.images(np.arange(len(table)))
    assert [p.reason if isinstance(p, BadSample) else "" for p in found] == [
        "",
        "no image",
        "missing",
        "not a file",
        "missing",
        "missing",
    ]


def test_fingerprint(folder: Path) -> None:
    path = written(folder, "filepath,caption\n0.png,a\n1.png,b\n")
    first = read_table(path).fingerprint()
    assert read_table(path).fingerprint() == first
    changed = [written(folder, "filepath,caption\n0.png,a\n1.png,c\n", "c.csv")]
    changed.append(written(folder, "filepath,caption\n1.png,b\n0.png,a\n", "d.csv"))
    changed.append(written(folder, "filepath,caption\n0.png,a\n0.png,b\n", "e.csv"))
    assert len({first, *(read_table(p).fingerprint() for p in changed)}) == 4
    Image.new("RGB", (80, 80)).save(folder / "1.png")
    assert read_table(path).fingerprint() != first


def test_photographs(folder: Path) -> None:
    drawings = read_table(written(folder, "filepath,caption\n0.png,a\n1.png,b\n"))
    assert not drawings.photographs
    for i in range(3):
        Image.new("RGB", (20, 20)).save(folder / f"{i}.jpg")
    assert read_table(written(folder, "filepath,caption\ngone.png,x\n0.jpg,a\n1.jpg,b\n0.png,c\n")).photographs


def test_what_is_said_of_a_table_that_has_nothing(folder: Path) -> None:
    assert "empty" in message(written(folder, ""))
    assert "no row" in message(written(folder, "filepath,caption\n"))
    assert "no header" in message(written(folder, "\n\n"))
    assert "UTF-8" in message_of_bytes(folder, "filepath,caption\n0.png,café\n".encode("latin1"))
    assert "UTF-8" in message_of_bytes(folder, "filepath,caption\n".encode("utf-16"))
    assert "UTF-8" in message_of_bytes(folder, (folder / "0.png").read_bytes())  # a picture for a table
    text = message(written(folder, "a,b\n0.png,x\n"))
    assert "a, b" in text
    assert "--image-column" in text
    text = message(written(folder, "filepath,words\n0.png,x\n"), columns=Columns(caption="word"))
    assert "'words'" in text
    assert "filepath, words" in text
    assert "--caption-column" in message(written(folder, "filepath,b\n0.png,x\n"))
    text = message(written(folder, "filepath,caption\ngone.png,x\n"))
    assert "'gone.png'" in text
    assert str(folder) in text
    assert len(message(written(folder, f"filepath,caption\n{'x' * 5000},x\n"))) < 1000


def message_of_bytes(folder: Path, data: bytes) -> str:
    path = folder / "bytes.csv"
    path.write_bytes(data)
    return message(path)


def test_what_is_said_of_a_spec_that_names_nothing(folder: Path) -> None:
    written(folder, "filepath,caption\n0.png,a\n", "captions.csv")
    os.mkfifo(folder / "pipe.csv")
    for spec, expected in {
        "glyhps": "'glyphs'",
        "glyphs/unseen_name": "'unseen_names'",
        str(folder / "caption.csv"): "'captions.csv'",
        str(folder): "captions.csv",
        str(folder / "nowhere" / "t.csv"): "does not exist",
        str(folder / "pipe.csv"): "no file",
        "x" * 5000: "no file",
    }.items():
        with pytest.raises(InputError, match=expected):
            open_source(spec)


def test_class_folders(folder: Path) -> None:
    for name, n in {"sea_lion": 2, "cat": 1}.items():
        (folder / "set" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8)).save(folder / "set" / name / f"{i}.png")
    (folder / "set" / "cat" / ".hidden").write_text("")
    found = read_labelled(folder / "set")
    assert (found.classes, found.labels.tolist(), found.templates) == (["cat", "sea lion"], [0, 1, 1], None)
    assert found.labels.dtype == np.int64
    assert len(set(found.image_id.tolist())) == 3
    assert [picture.size for picture in found.images(np.array([0, 2])) if isinstance(picture, Image.Image)] == [
        (8, 8)
    ] * 2
    first = found.fingerprint()
    written(folder / "set", "feline\npinniped\n", "classnames.txt")
    written(folder / "set", "a photo of a {}.\n", "templates.txt")
    found = read_labelled(folder / "set")
    assert (found.classes, found.templates) == (["feline", "pinniped"], ["a photo of a {}."])
    assert found.fingerprint() != first
    written(folder / "set", "feline\n", "classnames.txt")
    with pytest.raises(InputError, match="1 names for 2 class folders"):
        read_labelled(folder / "set")
    written(folder / "set", "a\nb\n", "classnames.txt")
    written(folder / "set", "a photo\n", "templates.txt")
    with pytest.raises(InputError, match="where the class goes"):
        read_labelled(folder / "set")


@pytest.mark.parametrize("column", ["label", "class", "category", "target", "group"])
def test_a_table_of_classes(folder: Path, column: str) -> None:
    path = written(folder, f"image,{column},split,part\n0.png,cat,val,x\n1.png,dog,val,y\n2.png,ant,test,y\n")
    found = read_labelled(path)
    assert (found.classes, found.labels.tolist()) == (["ant", "cat", "dog"], [1, 2, 0])
    found = read_labelled(path, split="val")
    assert (found.classes, found.labels.tolist(), found.key(0)) == (["cat", "dog"], [0, 1], str(folder / "0.png"))
    assert len(read_labelled(path, split="y", split_column="part")) == 2
    with pytest.raises(InputError, match=r"val \(2\)"):
        read_labelled(path, split="train")


def test_what_is_said_of_no_classes(folder: Path) -> None:
    (folder / "bare").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        read_labelled(folder / "bare")
    with pytest.raises(InputError, match="--label-column"):
        read_labelled(written(folder, "image,words\n0.png,x\n"))
    for name in ("gone", "x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="expected a folder"):
            read_labelled(folder / name)
    with pytest.raises(InputError, match="is there"):
        read_labelled(written(folder, "image,label\ngone.png,x\n"))
