"""`xmodal data inspect` and `xmodal data check` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_shards import png, shards, tar
from xmodal.cli import main


def table(folder: Path) -> Path:
    rows = ["image,caption,split"]
    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(20 * (i // 2)))  # each picture twice
        rows.append(f"{i}.png,thing {i % 5},{('train', 'val')[i % 2]}")
    (folder / "3.png").write_bytes(b"<html>")
    (folder / "t.csv").write_text("\n".join([*rows, "gone.png,x,train", ",y,train", "5.png,,val"]) + "\n")
    return folder / "t.csv"


def test_a_table_is_described_with_the_command_that_trains_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    assert main(["data", "inspect", str(path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "form: table" in told
    assert "  train: 7 pictures" in told
    assert "  val: 6 pictures" in told
    assert "captions: 7, 1 a picture" in told
    assert "captions of more than one picture: 1: positives of all of them" in told
    assert "width × height: 8 × 8 pixels (all looked at)" in told
    assert "unreadable: 1 missing of all looked at" in told
    assert "left out: 1 with no image" in told
    assert "  0.png: thing 0" in told
    assert told[-1] == f"train on it: xmodal train clip --data {path}"


def test_equal_pictures_and_shards_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "s")
    tar(folder / "00002.tar", {"7.png": png(3), "7.txt": "\x1b[31mseven"})
    assert main(["data", "inspect", str(folder), "--sample", "8"]) == 0
    told = capsys.readouterr().out
    assert "form: tar shards, 3 of them" in told
    assert "equal pictures: 1 of all looked at" in told
    assert "\x1b" not in told
    assert "to evaluate on: nothing; --val names other data" in told


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_picture_is_read_and_bad_ones_are_listed(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    flags = ["--workers", workers, "--output", str(tmp_path / "out" / "bad.jsonl")]
    assert main(["data", "check", str(path), *flags]) == 1  # two of thirteen
    told = capsys.readouterr().out
    assert "13 pictures with captions, 2 can't be read: 1 no image, 1 missing." in told
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(one["row"], one["key"], one["reason"]) for one in bad] == [
        (3, "3.png", "no image"),
        (12, "gone.png", "missing"),
    ]
    assert main(["data", "check", str(path), "--max-bad-fraction", "0.2", "--workers", "0"]) == 0
    assert main(["data", "check", str(path), "--split", "train", "--workers", "0"]) == 0  # one bad is always allowed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "xmodal data inspect DATA"),
        (["data", "inspect"], "needs DATA"),
        (["data", "inspect", "nowhere"], "No data 'nowhere'"),
        (["data", "check", "nowhere"], "No data 'nowhere'"),
        (["data", "check", "glyphs", "--workers", "-1"], "0 or more"),
    ],
)
def test_wrong_input_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
