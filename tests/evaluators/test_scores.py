"""The file is JSON for any reader, and no name of a class or a file steers the terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.errors import InputError
from xmodal.evaluators.scores import plain, print_classes, print_table, write_scores

ONE = {"value": 0.5, "low": 0.25, "high": 0.75}
NASTY = "\x1b]0;title\x07[red]cat[/red] [/] :cat: \x9b2J\r\n\u202edog\udcff"


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_form_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "scores.json"
    write_scores(path, {"data": "猫.csv", "texts": 3}, {"image_to_text/R@1": ONE}, confusion=[[1, 0], [0, 2]])
    assert strict(path) == {
        "protocol": {"data": "猫.csv", "texts": 3},
        "scores": {"image_to_text/R@1": ONE},
        "confusion": [[1, 0], [0, 2]],
    }
    assert "猫" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_no_nan_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores(path, {}, {"a": {"value": math.nan, "low": -math.inf, "high": 1.0}}, classes=[{"f1": math.inf}])
    found = strict(path)
    assert found["scores"]["a"] == {"value": None, "low": None, "high": 1.0}
    assert found["classes"] == [{"f1": None}]


def test_any_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores(path, {"data": NASTY}, {NASTY: ONE})
    assert strict(path)["protocol"]["data"] == NASTY.replace("\udcff", "\N{REPLACEMENT CHARACTER}")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "scores.json", tmp_path):
        with pytest.raises(InputError, match="Cannot write .*: "):
            write_scores(path, {}, {})


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rank = {"value": 2.0, "low": 1.0, "high": 3.5}
    scores = {
        "unseen_names/image_to_text/R@1": ONE,
        "unseen_names/image_to_text/median_rank": rank,
        "zero_shot/top1": {"value": 1.0, "low": 1.0, "high": 1.0},
    }
    print_table({"data": "x", "part": {"images": 3}}, scores)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    said = "\n".join(lines)
    assert "50.0 [25.0, 75.0]" in said  # ×100, with its interval
    assert "100.0 [100.0, 100.0]" in said
    row = next(line for line in lines if line.startswith("unseen names, image to text"))
    assert row.endswith("2.0")  # a rank stays what it is, and takes no interval
    assert "median rank" in said
    assert lines[-3:] == ["data: x", "part", "  images: 3"]


def test_names_do_not_reach_the_terminal_as_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: markup would become escape sequences
    monkeypatch.setenv("TERM", "xterm")
    for show in (
        lambda: print_classes([NASTY, "dog"], np.array([[1, 2], [3, 4]])),
        lambda: print_table({NASTY: NASTY, "part": {"x": NASTY}}, {f"{NASTY}/R@1": ONE, "/R@1": ONE}),
    ):
        show()
        said = capsys.readouterr().out
        for forbidden in ("\x1b]", "\x07", "\x9b", "\r", "\u202e", "\udcff", "\x1b[31m"):
            assert forbidden not in said
        assert "[red]cat[" in said  # markup is shown, not obeyed; "/red" in a score's name is a comma
        assert ":cat:" in said


def test_classes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_classes(["cat", "dog", "[b]"], np.array([[3, 1, 0], [0, 2, 0], [4, 0, 0]]))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", "4", "42.9", "75.0", "54.5", "dog", "(1)"] in rows
    assert ["dog", "2", "66.7", "100.0", "80.0"] in rows
    assert ["[b]", "4", "0.0", "0.0", "0.0", "cat", "(4)"] in rows


def test_plain() -> None:
    assert plain("a\x1b[2Jb\nc\td\x7f\x85\u2066e") == "a [2Jb c d   e"
    assert plain(3) == "3"
    assert plain("猫 é") == "猫 é"
