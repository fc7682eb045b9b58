"""`xmodal train clip` and the evaluations as a user meets them: what works end to end, and what wrong input gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xmodal
from xmodal.cli import main

QUICK = ["--preset", "quick", "--batch-size", "8", "--steps", "2", "--precision", "fp32", "--vocabulary", "64"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["filepath\ttitle\tsplit"]
    for n in range(20):
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        lines += [
            f"{n}.png\tpicture number {n}, {kind}\t{'train' if n < 14 else 'val'}" for kind in ("first", "second")
        ]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.tsv"


def test_own_pairs_are_trained_on_evaluated_and_the_model_opens(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "clip", "--data", str(table), "--output", str(run), *QUICK]) == 0
    said = capsys.readouterr().out
    assert "preset quick, 1 process on" in said
    assert "global batch 8" in said
    files = {p.name for p in run.iterdir()}
    assert files == {"checkpoints", "config.yaml", "metrics.jsonl", "model.json", "model.safetensors", "report.html",
                     "scores.json", "tokenizer.model"}  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"step", "loss", "lr", "scale", "grad_norm", "pairs_per_second", "floor"} == set(lines[0])
    written = json.loads((run / "scores.json").read_text())
    assert written["protocol"]["images"] == 6 and written["protocol"]["texts"] == 12  # noqa: PT018
    assert xmodal.load(str(run)).encode_text(["picture"]).shape == (1, 256)

    # The evaluation command gives the same figures.
    report = tmp_path / "scores.json"
    arguments = ["eval", "retrieval", str(run), "--data", str(table), "--split", "val", "--json", str(report)]
    assert main(arguments) == 0
    again = json.loads(report.read_text())["scores"]
    assert {f"val/{name}": score for name, score in again.items()} == written["scores"]

    # The configuration repeats the run.
    repeat = ["train", "clip", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(repeat) == 0
    assert (tmp_path / "again" / "scores.json").read_text() == (run / "scores.json").read_text()

    # Zero-shot, from a table of classes.
    classes = tmp_path / "classes.csv"
    classes.write_text("image,label\n" + "".join(f"{n}.png,{'odd' if n % 2 else 'even'}\n" for n in range(10)))
    assert main(["eval", "zeroshot", str(run), "--data", str(classes), "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert set(found["classes"]) == {"even", "odd"}
    assert np.array(found["confusion"]).sum() == 10
    assert found["scores"]["top5"]["value"] == 1

    # Of a split in a column with a name of its own, with the templates that lie in a folder of classes.
    classes.write_text("image,label,fold\n" + "".join(f"{n}.png,{n % 2},{'ab'[n % 3 // 2]}\n" for n in range(10)))
    split = ["--split", "b", "--split-column", "fold", "--json", str(report)]
    assert main(["eval", "zeroshot", str(run), "--data", str(classes), *split]) == 0
    found = json.loads(report.read_text())["protocol"]
    assert found["images"] == 3
    assert found["templates"].startswith("4 (simple)")
    folder = tmp_path / "classes"
    for n in range(4):
        (folder / str(n % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / f"{n}.png", folder / str(n % 2))
    (folder / "templates.txt").write_text("number {}\n{}!\n")
    for more, told in (([], f"2 ({folder / 'templates.txt'})"), (["--templates", "none"], "1 (none)")):
        assert main(["eval", "zeroshot", str(run), "--data", str(folder), "--json", str(report), *more]) == 0
        assert json.loads(report.read_text())["protocol"]["templates"].startswith(told)

    # A run begun from a run folder.
    more = ["train", "clip", "--data", str(table), "--model", str(run), "--output", str(tmp_path / "more"), *QUICK]
    assert main(more) == 0


def test_steps_can_be_sliced_checkpointed_evaluated_and_locked(table: Path, tmp_path: Path) -> None:
    flags = ["--micro-batch", "3", "--grad-checkpointing", "--eval-every", "1", "--save-every", "1", "--lock-text",
             "--augment", "photo", "--positives", "mask", "--workers", "1"]  # fmt: skip
    run = tmp_path / "run"
    assert main(["train", "clip", "--data", str(table), "--output", str(run), *QUICK, *flags]) == 0
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [("loss" in e, e["step"]) for e in events] == [(True, 1), (False, 1), (True, 2)]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-1", "step-2"]


@pytest.fixture
def wrong(table: Path, tmp_path: Path) -> dict[str, str]:
    """Files that are no good, by name."""
    made = {
        "empty.csv": "",
        "header.csv": "filepath,caption\n",
        "columns.csv": "picture_file,words\n0.png,hello\n",
        "gone.csv": "filepath,caption\nno/where.png,hello\n",
        "wrong.yaml": "batch_sise: 4\n",
        "templates.txt": "a photo\n",
        "one.txt": "only one\n",
    }
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    for n in range(8):
        (tmp_path / f"broken{n}.png").write_bytes(b"no picture")
    (tmp_path / "broken.csv").write_text("filepath,caption\n" + "".join(f"broken{n}.png,text {n}\n" for n in range(8)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    return {"folder": str(tmp_path), "table": str(table)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "clip", "--data", "{folder}/pears.tsv"], ["pears.tsv", "Did you mean 'pairs.tsv'"]),
        (["train", "clip", "--data", "glyph"], ["'glyph'", "Did you mean 'glyphs'"]),
        (["train", "clip", "--data", "{folder}"], ["is a folder with several tables", "such as"]),
        (["train", "clip", "--data", "{folder}/empty.csv"], ["is empty"]),
        (["train", "clip", "--data", "{folder}/header.csv"], ["no row"]),
        (["train", "clip", "--data", "{folder}/columns.csv"], ["picture_file, words", "--image-column"]),
        (["train", "clip", "--data", "{table}", "--image-column", "fielpath"], ["'fielpath'", "'filepath'"]),
        (["train", "clip", "--data", "{folder}/gone.csv"], ["None of the 1 images", "no/where.png"]),
        (["train", "clip", "--data", "{folder}/broken.csv", *QUICK], ["No readable image"]),
        (["train", "clip", "--data", "{table}", *QUICK, "--batch-size", "15"], ["14 rows", "15"]),
        (["train", "clip", "--data", "{table}", "--model", "open_clip:ViT-B-23"], ["ViT-B-23", "did you mean"]),
        (["train", "clip", "--data", "{table}", "--model", "smal"], ["smal"]),
        (["train", "clip", "--data", "{table}", "--output", "{folder}/full"], ["not empty", "--resume"]),
        (["train", "clip", "--data", "{table}", "--output", "{folder}/full", "--resume"], ["no run", "config.yaml"]),
        (["train", "clip", "--data", "{table}", "--output", "{folder}/0.png"], ["is a file"]),
        (["train", "clap"], ["'clap'", "did you mean 'clip'"]),
        (["train", "clip", "--batchsize", "4"], ["--batchsize", "did you mean '--batch-size'"]),
        (["train", "clip", "--batch-size", "four"], ["four", "whole number"]),
        (["train", "clip", "--config", "{folder}/wrong.yaml"], ["batch_sise", "did you mean 'batch_size'"]),
        (["train", "clip", "--micro-batch", "0"], ["--micro-batch", "at least 1"]),
        (["eval", "retrieval", "{folder}/full", "--data", "{table}"], ["no run folder", "model.json"]),
        (["eval", "retrieval", "small", "--data", "{table}"], ["trained from scratch"]),
        (["eval", "retrieval", "{folder}/full", "--data", "{table}", "--split", "tset"], ["'tset'", "train (28)"]),
        (["eval", "zeroshot", "{folder}/full", "--data", "glyphs/other"], ["other_family"]),
        (["eval", "zeroshot", "{folder}/full", "--data", "glyphs", "--templates", "opneai"], ["did you mean 'openai'"]),
        (["eval", "zeroshot", "x", "--data", "glyphs", "--templates", "{folder}/templates.txt"], ["{{}}", "a photo"]),
        (["eval", "zeroshot", "x", "--data", "glyphs", "--classes", "{folder}/one.txt"], ["1 names", "14 classes"]),
    ],
)
def test_wrong_input_gets_a_line_and_exit_status_2(
    arguments: list[str], words: list[str], wrong: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([a.format(**wrong) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert all(word.format() in said for word in words), said
    assert "Traceback" not in said
    assert said.count("\n") <= 3, said
    left = sorted(p.name for p in tmp_path.iterdir())
    if "broken.csv" not in str(arguments):  # that one is found out while it trains
        assert left == before, "something was left half-written"


def test_too_many_broken_images_stop_the_run(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in (1, 2, 3):
        (tmp_path / f"{n}.png").write_bytes((tmp_path / f"{n}.png").read_bytes()[:200])
    run = tmp_path / "run"
    assert main(["train", "clip", "--data", str(table), "--output", str(run), *QUICK, "--steps", "9"]) == 2
    said = capsys.readouterr().err
    assert "--max-bad-fraction" in said
    assert "truncated" in said
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in listed} <= {"1.png", "2.png", "3.png"}
    assert len(listed) > 1
