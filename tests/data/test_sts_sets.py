"""Sets of scored pairs in each of the forms people have them in, and what is said of what can't be read."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data import sts as module
from xmodal.data.sts import HUB, SETS, SUBSETS, StsSet, read_sts, read_sts_dev
from xmodal.errors import InputError

ROWS = [("a dog", 'say "hi', 1.5), ("/etc/passwd", "http://x.y/z", 2), ("a, b", "c; d", 5)]


def tsv(path: Path, rows: Sequence[Sequence[Any]] = ROWS, header: str = "sentence1\tsentence2\tscore") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def only(data: Any, **options: Any) -> StsSet:
    (found,) = read_sts(str(data), **options).found
    return found


def message(data: Any, *names: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_sts(str(data), names, **options)
    return str(caught.value)


def same(found: StsSet, rows: Sequence[Sequence[Any]] = ROWS) -> None:
    assert list(zip(found.first, found.second, found.gold, strict=True)) == list(rows)
    assert found.gold.dtype == np.float64
    assert len(found) == len(rows)


# A folder of tables


def test_a_folder_of_tables(tmp_path: Path) -> None:
    tsv(tmp_path / "stsb-test.tsv")
    tsv(tmp_path / "sts12.tsv", ROWS[:2])
    tsv(tmp_path / "sickr-test.tsv", ROWS[1:])
    tsv(tmp_path / "sickr-train.tsv", ROWS[:1])
    found = read_sts(str(tmp_path))
    assert [one.name for one in found.found] == ["STS12", "STS-B", "SICK-R"]
    same(found.found[1])
    same(found.found[2], ROWS[1:])
    assert found.found[2].about == "2 pairs (test), sickr-test.tsv, raw text"
    assert found.missing["STS13"] == "sts13.tsv or STS/STS13-en-test/STS.input.FNWN.txt"
    assert set(found.missing) == {"STS13", "STS14", "STS15", "STS16"}
    assert "sickr-train.tsv, sickr-trial.tsv, sickr-test.tsv" in read_sts(str(tmp_path), sick="all").missing["SICK-R"]

    tsv(tmp_path / "sickr-trial.tsv", ROWS[:1])
    every = read_sts(str(tmp_path), ["sick_r"], sick="all")
    same(every.found[0], [ROWS[0], ROWS[0], *ROWS[1:]])
    assert every.found[0].about.startswith("4 pairs (all), sickr-train.tsv + sickr-trial.tsv + sickr-test.tsv")
    assert not every.missing


@pytest.mark.parametrize("name", ["STS-B", "stsb", "sts_b", "STSBenchmark", "stsbenchmark-sts"])
def test_a_set_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    tsv(tmp_path / "stsb-test.tsv")
    assert only(tmp_path, names=[name]).name == "STS-B"


def test_tokenised_columns(tmp_path: Path) -> None:
    rows = [(*row, f"{i} .", f"{i} !") for i, row in enumerate(ROWS)]
    tsv(tmp_path / "stsb-test.tsv", rows, "sentence1\tsentence2\tscore\tsenteval1\tsenteval2")
    tsv(tmp_path / "sickr-test.tsv")
    same(read_sts(str(tmp_path), ["STS-B"]).found[0])
    found = read_sts(str(tmp_path), text="senteval")
    assert found.found[0].first == ["0 .", "1 .", "2 ."]
    assert found.found[0].text == "tokenised text"
    assert found.missing["SICK-R"] == "columns senteval1 and senteval2 in sickr-test.tsv"
    assert "SICK-R: columns senteval1" in message(tmp_path, "SICK-R", text="senteval")


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    said = message(tmp_path)
    assert "lacks every set. Looked for STS12: sts12.tsv or STS/STS12-en-test/STS.input.MSRpar.txt" in said
    assert all(name in said for name in SETS)
    tsv(tmp_path / "stsb-test.tsv")
    assert "lacks STS12. Looked for STS12: sts12.tsv" in message(tmp_path, "STS-B", "STS12")
    assert "no set 'STS17'; did you mean" in message(tmp_path, "STS17")


# SentEval's folder


def senteval(root: Path) -> None:
    for name, subsets in SUBSETS.items():
        for i, subset in enumerate(subsets):
            folder = root / "STS" / f"{name}-en-test"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"STS.input.{subset}.txt").write_text(f'{subset} "  one\ttwo\tsource\nno\tscore\nlast\tpair \n')
            (folder / f"STS.gs.{subset}.txt").write_text(f"{i}.5\n\n5\n")
    benchmark = root / "STS" / "STSBenchmark"
    benchmark.mkdir()
    (benchmark / "sts-test.csv").write_text('g\tf\t2012\t1\t2.5\ta "dog\tb\ng\tf\t2012\t2\t4\tc\td\tsource\tsource\n')
    (root / "SICK").mkdir()
    for n, part in enumerate(("train", "trial", "test_annotated"), 2):
        rows = [(i, f'{part} " {i}', "b", i, "NEUTRAL") for i in range(n)]
        header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
        tsv(root / "SICK" / f"SICK_{part}.txt", rows, header)


@pytest.mark.parametrize("root", [".", "downstream", "SentEval/data/downstream"])
def test_senteval_s_folder(tmp_path: Path, root: str) -> None:
    senteval(tmp_path / root)
    found = {one.name: one for one in read_sts(str(tmp_path)).found}
    assert tuple(found) == SETS
    same(found["STS13"], [('FNWN " one', "two", 0.5), ("last", "pair", 5), ('headlines " one', "two", 1.5),
                          ("last", "pair", 5), ('OnWN " one', "two", 2.5), ("last", "pair", 5)])  # fmt: skip
    assert found["STS13"].unscored == 3
    assert "3 pairs without a score left out" in found["STS13"].about
    assert "tokenised text of SentEval" in found["STS13"].about
    assert {name: len(found[name]) for name in SUBSETS} == {name: 2 * len(s) for name, s in SUBSETS.items()}
    same(found["STS-B"], [('a "dog', "b", 2.5), ("c", "d", 4)])
    same(found["SICK-R"], [(f'test_annotated " {i}', "b", i) for i in range(4)])
    assert len(only(tmp_path, names=["SICK-R"], sick="all")) == 9


def test_a_table_goes_before_senteval_s_files(tmp_path: Path) -> None:
    senteval(tmp_path)
    tsv(tmp_path / "stsb-test.tsv")
    same(only(tmp_path, names=["STS-B"]))


def test_what_is_wrong_in_senteval_s_folder(tmp_path: Path) -> None:
    senteval(tmp_path)
    folder = tmp_path / "STS" / "STS12-en-test"
    gold = folder / "STS.gs.MSRvid.txt"
    gold.write_text("1\n\nfive\n")
    assert f"{gold}, line 3: the score is 'five'; expected a number." == message(tmp_path, "STS12")
    gold.write_text("1\n2\n")
    assert "MSRvid.txt has 3 lines, but STS.gs.MSRvid.txt has 2" in message(tmp_path, "STS12")
    gold.write_text("1\n2\n3\n")
    (folder / "STS.input.MSRvid.txt").write_text("a\tb\nno tab\nc\td\n")
    assert "STS.input.MSRvid.txt, line 2: expected two sentences" in message(tmp_path, "STS12")
    gold.unlink()  # a set whose scores are not there is not there
    assert "STS12" in read_sts(str(tmp_path)).missing
    (tmp_path / "STS/STSBenchmark/sts-test.csv").write_text("a,b,c\n")
    assert "sts-test.csv, line 1: 1 columns; expected 7" in message(tmp_path, "STS-B")


# Datasets


def dataset(folder: Path, rows: Sequence[Sequence[Any]] = ROWS, kind: str = "parquet", split: str = "test") -> Path:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("sentence1", "sentence2", "score"))}
    columns["score"] = [float(score) for score in columns["score"]]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_local_dataset(tmp_path: Path, kind: str) -> None:
    folder = dataset(tmp_path / "mine", kind=kind)
    found = only(f"hf-dataset:{folder}")
    same(found)
    assert found.name == "mine"
    assert found.origin == f"hf-dataset:{folder}, split test"
    dataset(folder, ROWS[1:], kind, split="validation")
    other = only(f"hf-dataset:{folder}", split="validation")
    same(other, ROWS[1:])
    assert other.name == "mine validation"
    assert "no split 'dev'; there are: " in message(f"hf-dataset:{folder}", split="dev")


def test_an_owner_s_datasets_under_mteb_s_names(tmp_path: Path) -> None:
    for name in ("STS12", "STS-B"):
        dataset(tmp_path / HUB[name])
    found = read_sts(f"hf-dataset:{tmp_path}/")
    assert [one.name for one in found.found] == ["STS12", "STS-B"]
    assert found.missing["SICK-R"] == "sickr-sts"
    assert only(f"hf-dataset:{tmp_path}", names=["stsb"]).name == "STS-B"
    assert "lacks SICK-R" in message(f"hf-dataset:{tmp_path}", "SICK-R", "STS-B")
    one = f"hf-dataset:{tmp_path}/stsbenchmark-sts"
    assert only(one).name == "STS-B"
    assert "--sets says nothing" in message(one, "STS-B")
    assert "--sick says nothing" in message(one, sick="all")


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ("hf-dataset:mteb", [f"hf-dataset:mteb/{hub}" for hub in HUB.values()]),
        ("hf-dataset:mteb/sts12-sts@abc", ["hf-dataset:mteb/sts12-sts@abc"]),
        ("hf-dataset:nyu-mll/glue,stsb", ["hf-dataset:nyu-mll/glue,stsb"]),
    ],
)
def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, data: str, asked: list[str]) -> None:
    calls = []

    def rows(spec: str, split: str) -> Any:
        calls.append((spec, split))
        return ["label", "sentence1", "sentence2"], iter([["1.0", "a", "b"], ["2.5", "c", "d"]])

    monkeypatch.setattr(module, "dataset_rows", rows)
    found = read_sts(data).found
    assert calls == [(spec, "test") for spec in asked]
    assert [one.name for one in found] == (list(SETS) if len(asked) > 1 else ["STS12" if "12" in data else "glue"])
    same(found[0], [("a", "b", 1), ("c", "d", 2.5)])


@pytest.mark.parametrize(("pairs", "part"), [(9927, "all"), (4927, "test"), (3, None)])
def test_which_part_of_sick_a_dataset_holds(monkeypatch: pytest.MonkeyPatch, pairs: int, part: Any) -> None:
    def rows(spec: str, split: str) -> Any:
        return ["sentence1", "sentence2", "score"], iter([["a", "b", str(i)] for i in range(pairs)])

    monkeypatch.setattr(module, "dataset_rows", rows)
    assert only("hf-dataset:mteb/sickr-sts").part == part
    for wanted in ("test", "all"):
        if wanted == part:
            assert only("hf-dataset:mteb/sickr-sts", sick=wanted).part == part
        else:
            assert "doesn't say which are the" in message("hf-dataset:mteb/sickr-sts", sick=wanted)


def test_a_score_in_a_dataset_that_is_none(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "mine", [*ROWS, ("a", "b", float("nan"))])
    assert "row 3 of split test: the score is 'nan'" in message(f"hf-dataset:{folder}")


# One table


@pytest.mark.parametrize(
    "header",
    [("sentence1", "sentence2", "score"), ("sentence_A", "sentence_B", "relatedness_score"),
     ("sent0", "sent1", "Label"), ("text1", "text2", "similarity")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["csv", "tsv.gz", "txt"])
def test_one_table(tmp_path: Path, header: tuple[str, ...], suffix: str) -> None:
    path = tmp_path / f"my.pairs.{suffix}"
    with gzip.open(path, "wt") if suffix.endswith("gz") else path.open("w") as stream:
        csv.writer(stream, delimiter="," if suffix == "csv" else "\t").writerows([header, *ROWS])
    found = only(path)
    same(found)
    assert found.name == "my.pairs"
    assert found.origin == path.name


def test_columns_by_name(tmp_path: Path) -> None:
    path = tsv(tmp_path / "a.tsv", header="left\tright\tscore")
    assert "no column of first sentences" in message(path)
    assert "Name one by --columns" in message(path)
    found = only(path, columns=("right", "left", "score"))
    same(found, [(b, a, score) for a, b, score in ROWS])
    assert found.text == "columns right, left, score"
    assert "no column 'lift'; did you mean 'left'?" in message(path, columns=("lift", "right", "score"))
    assert "takes three names" in message(path, columns=("left", "right"))
    assert "no column of scores" in message(tsv(path, header="sentence1\tsentence2\tmark"))
    assert "no column of first sentences" in message(tsv(path), text="senteval")


@pytest.mark.parametrize("score", ["", "five", "nan", "inf", "1,5"])
def test_a_score_that_is_no_number(tmp_path: Path, score: str) -> None:
    path = tsv(tmp_path / "a.tsv", [*ROWS, ("c", "d", score)])
    assert message(path) == f"{path}, line 5: the score is {score!r}; expected a number."


@settings(deadline=None, max_examples=60)
@given(
    heights=st.lists(st.integers(0, 3), max_size=8),
    blanks=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_the_line_of_a_bad_score(
    tmp_path_factory: pytest.TempPathFactory, heights: list[int], blanks: list[int], end: str
) -> None:
    """Blank lines are skipped and a quoted cell may hold several; the number is the file's own."""
    path = tmp_path_factory.mktemp("lines") / "a.csv"
    lines = ["sentence1,sentence2,score"]
    for height, blank in zip(heights, blanks, strict=False):
        lines += [""] * blank + f'"x{"|" * height}",y,1'.replace("|", "|\n").split("\n")
    lines += [""] * blanks[-1] + ["a,b,bad", "c,d,2"]
    path.write_bytes(end.join(lines).encode())
    assert f"line {lines.index('a,b,bad') + 1}: the score is 'bad'" in message(path)


def test_characters_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"sentence1\tsentence2\tscore\ncaf\xe9\tb\0\t1\nc\td\t2\ne\xff\xff\tf\t3\n")
    found = only(path)
    assert found.first == ["caf\ufffd", "c", "e\ufffd\ufffd"]
    assert found.second == ["b\ufffd", "d", "f"]
    assert found.replaced == 3
    assert "3 sentences had characters that are no text" in found.about


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("sentence1\tsentence2\tscore\n", "has no pairs"),
        ("sentence1\tsentence2\tscore\na\tb\t1\n", "has one pair"),
        ("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1.0\n", "Every pair of a has the score 1"),
    ],
)
def test_too_little(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(content)
    assert said in message(path)


@pytest.mark.parametrize("data", ["nowhere", "no\0thing", "x" * 5000])
def test_no_data(data: str) -> None:
    assert "expected a folder with sets such as stsb-test.tsv" in message(data)


@pytest.mark.parametrize(
    ("of", "options", "flag"),
    [("table", {"sick": "all"}, "sick"), ("table", {"split": "test"}, "split"), ("table", {"names": ["STS12"]}, "sets"),
     ("folder", {"split": "test"}, "split"), ("folder", {"columns": ("a", "b", "c")}, "columns")],
)  # fmt: skip
def test_flags_that_would_do_nothing(tmp_path: Path, of: str, options: dict[str, Any], flag: str) -> None:
    path = tsv(tmp_path / "stsb-test.tsv")
    names = options.pop("names", ())
    said = message(path if of == "table" else tmp_path, *names, **options)
    assert said.startswith(f"--{flag} says nothing about {path if of == 'table' else tmp_path}, which is ")


# What chooses among the steps of training


def test_the_dev_set_is_found_in_each_form(tmp_path: Path) -> None:
    folder, senteval, dataset = (tmp_path / name for name in ("folder", "senteval", "mteb"))
    tsv(folder / "stsb-dev.tsv", ROWS[:2])
    tsv(folder / "stsb-test.tsv")
    file = senteval / "downstream/STS/STSBenchmark/sts-dev.csv"
    tsv(file, [("news", "f", "2015", n, score, *pair) for n, (*pair, score) in enumerate(ROWS[:2])])
    file.write_text(file.read_text().partition("\n")[2])
    (dataset / HUB["STS-B"]).mkdir(parents=True)
    for split, rows in (("validation", ROWS[:2]), ("test", ROWS)):
        lines = [json.dumps(dict(zip(("sentence1", "sentence2", "score"), row, strict=True))) for row in rows]
        (dataset / HUB["STS-B"] / f"{split}.jsonl").write_text("\n".join(lines))
    for data in (folder, senteval, f"hf-dataset:{dataset}", f"hf-dataset:{dataset / HUB['STS-B']}"):
        same(read_sts_dev(str(data)), ROWS[:2])
    same(read_sts_dev(str(tsv(tmp_path / "own.tsv"))))


def test_a_folder_without_a_dev_set(tmp_path: Path) -> None:
    tsv(tmp_path / "stsb-test.tsv")
    with pytest.raises(InputError, match=r"neither stsb-dev\.tsv"):
        read_sts_dev(str(tmp_path))
    (tmp_path / HUB["SICK-R"]).mkdir()
    with pytest.raises(InputError, match="stsbenchmark-sts"):
        read_sts_dev(f"hf-dataset:{tmp_path}")
