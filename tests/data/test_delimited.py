"""Delimited files as people have them: what is read, which column is found, and what is said of what can't be read."""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal.data.delimited import column, counts, image_column, of_split, rows_of, split_column
from xmodal.errors import InputError


def read(path: Path) -> list[list[str]]:
    with rows_of(path) as (header, rows):
        return [header, *rows]


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.count("\n") <= 1  # one or two lines
    return text


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_separators(written: Callable[..., Path], separator: str) -> None:
    path = written(f" a {separator}b\n0{separator}a dog\n\n1{separator} a cat\n")
    assert read(path) == [["a", "b"], ["0", "a dog"], ["1", " a cat"]]


def test_rows_are_as_wide_as_the_header(written: Callable[..., Path]) -> None:
    assert read(written("a,b\n0\n1,x,,\n")) == [["a", "b"], ["0", ""], ["1", "x"]]
    assert "line 2: 3 columns" in message(written("a,b\n0,a dog, a cat\n"))  # no caption is cut at a comma


def test_byte_order_mark_line_ends_and_gzip(written: Callable[..., Path], tmp_path: Path) -> None:
    assert read(written("\ufeffa,b\r\n0,x\r\n")) == [["a", "b"], ["0", "x"]]
    packed = tmp_path / "t.tsv.gz"
    packed.write_bytes(gzip.compress("a\tb\n0\tcafé\n".encode()))
    assert read(packed) == [["a", "b"], ["0", "café"]]
    packed.write_bytes(gzip.compress(b"a\tb\n" + os.urandom(99).hex().encode())[:-20])
    assert "end-of-stream" in message(packed)


def test_quotes(written: Callable[..., Path]) -> None:
    assert read(written('a,b\n0,"a ""big"", old\ndog"\n'))[1:] == [["0", 'a "big", old\ndog']]


def test_a_stray_quote_swallows_nothing(written: Callable[..., Path]) -> None:
    """csv takes all lines up to the next quote for one cell, and says nothing."""
    rows = [["0", '"a dog'], ["1", "a cat"], ["2", 'a "cow"'], ["3", '"end']]
    assert read(written("a\tb\n" + "".join("\t".join(row) + "\n" for row in rows)))[1:] == rows
    assert "line 3" in message(written("a,b\n1,fine\n" + "".join(",".join(row) + "\n" for row in rows)))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1, max_size=6),
    separator=st.sampled_from(",\t;|"),
)
def test_what_csv_writes_is_read_back(tmp_path: Path, texts: list[str], separator: str) -> None:
    path = tmp_path / "written.csv"
    rows = [["0.png", text] for text in texts]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=separator).writerows([["filepath", "caption"], *rows])
    assert read(path)[1:] == rows


def test_columns_by_usual_names_in_their_order_and_by_their_own(tmp_path: Path) -> None:
    header = ["Id", "IMG", "Path", "words"]
    assert image_column(tmp_path, header, None) == 2  # path comes before img in the list
    assert image_column(tmp_path, header, "IMG") == 1
    with pytest.raises(InputError, match=r"no column 'word'; did you mean 'words'\? Columns: Id, IMG, Path, words"):
        column(tmp_path, header, "word", (), "captions", "--caption-column")
    with pytest.raises(InputError, match=r"(?s)no column of captions .*Id, IMG, Path, words.*--caption-column"):
        column(tmp_path, header, None, ("caption",), "captions", "--caption-column")
    assert split_column(tmp_path, header, None) is None
    assert split_column(tmp_path, header, "Id") == 0
    assert split_column(tmp_path, ["a", "Set", "partition"], None) == 2
    with pytest.raises(InputError, match="no column 'split'"):
        split_column(tmp_path, header, "split")


def test_the_rows_of_a_split() -> None:
    rows = [["0", "train"], ["1", " Validation"], ["2", "dev"], ["3", "TEST"], ["4", ""]]
    present: Counter[str] = Counter()
    assert [row[0] for row in of_split(rows, 1, "val", present)] == ["1", "2"]
    assert present == {"train": 1, "val": 2, "test": 1, "": 1}
    assert counts(present) == "val (2), train (1), test (1), no split (1)"
    assert list(of_split(rows, 1, None, Counter())) == rows
    assert list(of_split(rows, None, None, Counter())) == rows
    assert list(of_split(rows, None, "val", Counter())) == []


def test_what_is_said_of_a_file_that_has_nothing(written: Callable[..., Path], tmp_path: Path) -> None:
    assert "is empty" in message(written(""))
    assert "no header" in message(written("\n\n"))
    for name in ("gone.csv", "x" * 5000, "a\0b"):
        assert "No file" in message(tmp_path / name)
    for data in (b"a,caf\xe9\n", b"a,b\n0,caf\xe9\n", "a,b\n".encode("utf-16"), b"\x89PNG\r\n\x1a\n\0\0"):
        (tmp_path / "bytes.csv").write_bytes(data)
        assert "UTF-8" in message(tmp_path / "bytes.csv")
