"""Scores of what the command line says, of a table of pairs, and of all texts with all."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xmodal
from tests.embedding.conftest import pictures
from xmodal.cli import main
from xmodal.embedding import score as module

TEXTS = ["a cat", "the dog runs", "a red house"]


def cosines(spec: str, texts: list[str]) -> np.ndarray:
    rows = xmodal.load(spec, device="cpu").encode(texts, normalize_embeddings=True)
    return rows @ rows.T


def test_two_texts_are_a_number_and_more_are_compared_with_the_first(
    sentences: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = cosines(sentences, TEXTS)
    assert main(["score", *TEXTS[:2], "--model", sentences]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(expected[0, 1], abs=1e-4)
    assert main(["score", TEXTS[0], "--model", sentences, *TEXTS[1:]]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in lines] == TEXTS[1:]
    assert [float(c) for c, _ in lines] == pytest.approx(expected[0, 1:].tolist(), abs=1e-4)


def test_what_looks_like_a_path_or_a_flag_is_text(sentences: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = cosines(sentences, ["/etc/passwd", "--model"])[0, 1]
    assert main(["score", "--model", sentences, "--", "/etc/passwd", "--model"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("named", [False, True])
def test_a_table_of_pairs_gets_a_column(
    named: bool, sentences: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PAIRS", 3)  # some are left for a last lot
    header = ["q, 1", "other", "d"] if named else ["id", "sentence1", "sentence2"]
    table = tmp_path / "pairs.csv"
    rows = [[TEXTS[i % 3], f'said "{i}", twice', TEXTS[i * i % 3]] for i in range(7)]
    rows = rows if named else [[row[1], row[0], row[2]] for row in rows]
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    flags = ["--columns", "q, 1", "d"] if named else []
    assert main(["score", "--file", str(table), "--model", sentences, *flags]) == 0
    printed = list(csv.reader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert main(["score", "--file", str(table), "--model", sentences, "--output", str(tmp_path / "o.csv"), *flags]) == 0
    with (tmp_path / "o.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == printed
    assert printed[0] == ["q, 1" if named else "sentence1", "d" if named else "sentence2", "cosine"]
    expected = cosines(sentences, TEXTS)
    assert len(printed) == 8
    for i, (first, second, cosine) in enumerate(printed[1:]):
        assert (first, second) == (TEXTS[i % 3], TEXTS[i * i % 3])
        assert float(cosine) == pytest.approx(expected[i % 3, i * i % 3], abs=1e-5)


@pytest.mark.parametrize("n", [3, 20, 70])
def test_a_matrix_is_printed_written_and_drawn(
    n: int, sentences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{TEXTS[i % 3]} $ {i} %" for i in range(n)]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    told = ["score", "--matrix", "--model", sentences, "--file", str(tmp_path / "lines.txt")]
    assert main(told) == (0 if n <= 24 else 2)
    output = capsys.readouterr()
    if n <= 24:
        assert output.out.count("1.000") >= n
    else:
        assert "too many to print; write them" in output.err
    assert main([*told, "--output", str(tmp_path / "m.csv")]) == 0
    with (tmp_path / "m.csv").open(newline="") as stream:
        first, *rows = csv.reader(stream)
    assert first == ["", *texts]
    assert [row[0] for row in rows] == texts
    assert np.array([row[1:] for row in rows], dtype=float) == pytest.approx(cosines(sentences, texts), abs=1e-5)
    assert main([*told, "--output", str(tmp_path / "m.png")]) == 0
    with Image.open(tmp_path / "m.png") as image:
        assert min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 8


def test_pictures_are_compared_with_texts(dual: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "pictures", 2)
    files = [str(folder / f"{i}.png") for i in range(2)]
    told = ["score", "a cat", "a dog", "a house", "--model", dual, "--image", *files]
    assert main([*told, "--output", str(tmp_path / "o.tsv")]) == 0
    with (tmp_path / "o.tsv").open(newline="") as stream:
        _, *rows = csv.reader(stream, delimiter="\t")
    model = xmodal.load(dual, device="cpu")
    expected = model.encode_image(files) @ model.encode_text(["a cat", "a dog", "a house"]).T
    assert np.array([row[1:] for row in rows], dtype=float) == pytest.approx(expected.numpy(), abs=1e-5)
    assert main(told) == 0
    assert "2  a dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a"], "needs two things to compare"),
        (["a", "--file", "pairs.tsv"], "not from both"),
        (["--image", "a.png", "--file", "pairs.tsv"], "not from both"),
        (["a", "b", "--output", "o.png"], "expected a name that ends in .csv, .tsv"),
        (["--file", "lines.txt"], "is a file of lines"),
        (["--file", "wide.tsv"], "name the two to compare: --columns A B"),
        (["--file", "wide.tsv", "--columns", "x"], "--columns names two columns"),
        (["--file", "wide.tsv", "--columns", "x", "zz"], "no column 'zz'"),
        (["--file", "bare.tsv"], "has no pairs"),
        (["--file", "nowhere.tsv"], "No file"),
        (["--file", "one.txt", "--matrix"], "holds 1 texts"),
        (["a", "--image", "a.png"], "takes texts alone"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    flags: list[str],
    message: str,
    sentences: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("a\nb\n")
    Path("one.txt").write_text("a\n")
    Path("wide.tsv").write_text("x\ty\tz\na\tb\tc\n")
    Path("bare.tsv").write_text("sentence1\tsentence2\n")
    assert main(["score", "--model", sentences, *flags]) == 2 if flags != ["a", "b"] else 0
    assert message in capsys.readouterr().err
