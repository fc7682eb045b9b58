"""`xmodal eval sts`: one model and several, in the tables, in the file, and what is said of wrong input."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xmodal
from xmodal.cli import main
from xmodal.errors import InputError

SUBJECTS = ("a dog", "two cats", "the old man")
VERBS = ("runs", "sleeps", "reads a book", "plays the guitar")


class Words:
    """Rows of hashed words, some of which it doesn't know."""

    def __init__(self, knows: float) -> None:
        self.knows = knows

    def encode(self, sentences: list[str]) -> np.ndarray:
        rows = np.full((len(sentences), 64), 1e-3)
        for row, sentence in zip(rows, sentences, strict=True):
            for word in sentence.split():
                code = zlib.crc32(word.encode())
                if code % 100 < 100 * self.knows:
                    row[code % 64] += 1
        return rows


class Silent:
    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.ones((len(sentences), 4))


MODELS = {"good": Words(1.0), "runs/worse": Words(0.6), "silent": Silent(), "no encoder": object()}


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: str, device: Any = None) -> Any:
        if spec not in MODELS:
            raise InputError(f"No model {spec!r}.")
        return MODELS[spec]

    monkeypatch.setattr(xmodal, "load", load)
    monkeypatch.setenv("COLUMNS", "60")  # a terminal too narrow for the tables


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Pairs whose scores say how much of a sentence is shared."""
    for name, seed in (("stsb-test", 0), ("sickr-test", 1)):
        rng = np.random.default_rng(seed)
        lines = ["score\tsentence1\tsentence2"]
        for _ in range(60):
            (a, c), (b, d) = rng.choice(SUBJECTS, 2), rng.choice(VERBS, 2)
            score = 2.2 * (a == c) + 2.2 * (b == d) + 0.6 * rng.random()
            lines.append(f"{score:.2f}\t{a} {b}\t{c} {d} {rng.choice(['now', 'here'])}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def strict(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["eval", "sts", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) <= 2
    return said.err


def test_one_model(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "scores.json"
    assert main(["eval", "sts", "good", "--data", str(sets), "--json", str(path)]) == 0
    found = strict(path)
    assert list(found) == ["protocol", "scores"]
    assert list(found["scores"]) == ["STS-B", "SICK-R", "average", "alignment", "uniformity"]
    for score in found["scores"].values():
        assert score["low"] <= score["value"] <= score["high"]
    assert 0.5 < found["scores"]["STS-B"]["value"] < 1
    assert found["protocol"]["model"] == "good"
    assert found["protocol"]["sets"]["SICK-R"] == "60 pairs (test), sickr-test.tsv, raw text"
    assert found["protocol"]["sets that are not there"]["STS12"].startswith("looked for sts12.tsv")

    said = capsys.readouterr().out
    lines = said.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["Spearman ×100", *found["scores"]]
    value, low, high = (f"{found['scores']['STS-B'][k] * 100:.2f}" for k in ("value", "low", "high"))
    assert lines[2].split()[:2] == ["good", value]
    assert f"{low}…{high}" in lines[3]
    assert f"{found['scores']['uniformity']['value']:.3f}" in lines[2]
    assert "STS12: looked for sts12.tsv" in said
    assert "less good" not in said


def test_several_models(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.json"
    models = ("good", "runs/worse", "silent")
    assert main(["eval", "sts", *models, "--data", str(sets), "--sets", "stsb", "sick-r", "--json", str(path)]) == 0
    found = strict(path)
    assert list(found) == ["protocol", "scores", "differences"]
    assert found["protocol"]["models"] == ", ".join(models)
    assert "sets that are not there" not in found["protocol"]
    scores, differences = found["scores"], found["differences"]
    names = ("STS-B", "SICK-R", "average")
    assert list(scores) == [f"{m}/{n}" for m in models for n in (*names, "alignment", "uniformity")]
    assert list(differences) == [f"{m}/{n}" for m in models[1:] for n in names]
    for name, difference in differences.items():
        apart = scores[name]["value"] - scores[f"good/{name.rpartition('/')[2]}"]["value"]
        assert difference["value"] == pytest.approx(apart)
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert scores["silent/average"] == {"value": 0, "low": 0, "high": 0}  # all its cosines are equal
    assert scores["silent/alignment"]["value"] == pytest.approx(0, abs=1e-6)
    assert differences["silent/average"]["high"] < 0

    lines = capsys.readouterr().out.splitlines()
    second = lines.index(next(line for line in lines if line.startswith("less good")))
    assert [line.split()[0] for line in lines[2:second] if line.strip()] == ["good", "its", "runs/worse", "silent"]
    assert [line.split()[0] for line in lines[second + 2 : second + 6]] == ["runs/worse", "95%", "silent", "95%"]
    worse = differences["runs/worse/average"]
    assert f"{worse['value'] * 100:+.2f}" in lines[second + 2]
    assert f"{worse['low'] * 100:+.2f}…{worse['high'] * 100:+.2f}" in lines[second + 3]


def test_one_model_has_the_same_scores_alone_and_among_others(sets: Path) -> None:
    from xmodal.eval.sts import Config, run

    alone = run(Config(models=("runs/worse",), data=str(sets)))["scores"]
    among = run(Config(models=("good", "runs/worse"), data=str(sets)))["scores"]
    assert alone == {name.removeprefix("runs/worse/"): s for name, s in among.items() if name.startswith("runs/")}


def test_a_table_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("q,r,mark\na dog runs,a dog sleeps,10\na dog runs,two cats,0\ntwo cats,the cats,12\n")
    assert main(["eval", "sts", "good", "--data", str(path), "--columns", "q", "r", "mark"]) == 0
    said = capsys.readouterr().out
    assert re.split(r"\s{2,}", said.splitlines()[0]) == ["Spearman ×100", "mine"]
    assert "mine: 3 pairs, mine.csv, columns q, r, mark" in said


def test_wrong_input(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", str(sets))
    assert "needs MODELS" in complaint(capsys, *data)
    assert "needs --data" in complaint(capsys, "good")
    assert "'good' is given twice" in complaint(capsys, "good", "silent", "good", *data)
    assert "No model 'lost'" in complaint(capsys, "lost", *data)
    assert "neither encode nor encode_text" in complaint(capsys, "no encoder", *data)
    assert "lacks STS12" in complaint(capsys, "good", *data, "--sets", "STS12")
    assert "no set 'STSX'" in complaint(capsys, "good", *data, "--sets", "STSX")
    assert "lacks every set" in complaint(capsys, "good", "--data", str(tmp_path.parent))
    assert "--batch-size is 0" in complaint(capsys, "good", *data, "--batch-size", "0")
    assert "--sick" in complaint(capsys, "good", *data, "--sick", "some")
    path = tmp_path / "bad.tsv"
    path.write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\tgood\n")
    assert f"{path}, line 3: the score is 'good'" in complaint(capsys, "good", "--data", str(path))
    path.write_text("")
    assert "is empty" in complaint(capsys, "good", "--data", str(path))
