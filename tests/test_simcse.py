"""`xmodal train simcse` as a user meets it: each form of data, what is kept, what is resumed, and wrong input."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xmodal
from tests.encoders import hubs
from xmodal.cli import main
from xmodal.method import Progress

# Words of the tiny tokenizer's vocabulary.
WORDS = ["cat", "dog", "the", "a", "and", "red", "blue"]
QUICK = ["--steps", "2", "--batch-size", "4", "--precision", "fp32"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 8)))


def written(path: Path, columns: int, n: int = 24, header: str = "") -> Path:
    rng = random.Random(columns)
    rows = ["\t".join(sentence(rng) for _ in range(columns)) for _ in range(n)]
    path.write_text("\n".join(([header] if header else []) + rows) + "\n")
    return path


FORMS = {
    "sentences": (1, "", "paper"),
    "pairs": (2, "anchor\tpositive", "supervised"),
    "triplets": (3, "anchor\tpositive\tnegative", "supervised"),
    "groups": (4, "caption1\tcaption2\tcaption3\tcaption4", "groups"),
}


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return f"hf:{hubs.bert(tmp_path / 'bert')}"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = random.Random(0)
    rows = [f"{sentence(rng)}\t{sentence(rng)}\t{rng.random() * 5:.2f}" for _ in range(30)]
    file = tmp_path / "pairs.tsv"
    file.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    return file


def train(*flags: object) -> int:
    return main(["train", "simcse", *map(str, flags)])


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_trained_on_and_the_model_opens_in_both_libraries(
    form: str, bert: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, header, preset = FORMS[form]
    data = written(tmp_path / "data.tsv" if header else tmp_path / "data.txt", columns, header=header)
    run = tmp_path / "run"
    assert train("--data", data, "--model", bert, "--val", pairs, "--output", run, *QUICK) == 0
    assert f"preset {preset}, 1 process" in capsys.readouterr().out
    assert len(losses(run)) == 2
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["scores"]) >= {"pairs"}
    assert set(scores["before training"]) == set(scores["scores"])
    assert "step 2, the best on pairs" in scores["protocol"]["weights"]
    model = xmodal.load(str(run))
    sentences = ["the cat and a dog", "a red dog", "blue"]
    rows = model.encode(sentences)
    assert rows.shape == (3, 32)

    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(run), device="cpu", local_files_only=True)
    np.testing.assert_allclose(rows, theirs.encode(sentences), atol=1e-5)
    # The supervised preset keeps its head in the model, the others leave it in training.
    assert ("Dense" in [type(module).__name__ for module in theirs]) == (preset == "supervised")


def method_of(bert: str, tmp_path: Path, form: str, **told: Any) -> tuple[Any, dict[str, Any]]:
    """A method and a batch."""
    from xmodal.data.sentence_batches import SentenceBatches
    from xmodal.train import simcse

    columns, header, _ = FORMS[form]
    data = written(tmp_path / "data.tsv" if header else tmp_path / "data.txt", columns, header=header)
    config = simcse.Config(data=str(data), model=bert, batch_size=4, **told)
    source = simcse.sentences(config)
    encoder = simcse.open_encoder(config, source)
    batches = SentenceBatches(source, batch=4, part=(0, 4), seed=0, tokenize=encoder.tokenizer)
    return simcse.simcse(config, encoder, source.form, judged=False).train(), batches[0][0]


@pytest.mark.parametrize(
    ("told", "same"), [({}, False), ({"dropout": 0.0}, True), ({"dropout": 0.0, "delete": 0.5}, False)]
)
def test_dropout_is_what_tells_the_two_views_apart(told: dict[str, Any], same: bool, bert: str, tmp_path: Path) -> None:
    method, batch = method_of(bert, tmp_path, "sentences", **told)
    text = method.encode(batch)["text"]
    assert text.shape == (4, 2, 32)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(4, 2))
    assert torch.allclose(text[:, 0], text[:, 1], atol=1e-6) == same


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_formula(form: str, bert: str, tmp_path: Path) -> None:
    method, batch = method_of(bert, tmp_path, form, temperature=0.1)
    text = method.encode(batch)["text"].double().detach()
    loss, metrics = method.objective({"text": text}, method.targets(batch), Progress(0, 2, 2, 4))
    if form == "groups":  # both texts look for each other among all others
        flat = text.flatten(0, 1)
        logits = (flat @ flat.T / 0.1).masked_fill(torch.eye(8, dtype=torch.bool), float("-inf"))
        expected = torch.nn.functional.cross_entropy(logits, torch.arange(8) ^ 1)
    else:
        keys = text[:, 1:].transpose(0, 1).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(text[:, 0] @ keys.T / 0.1, torch.arange(4))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    assert metrics["scale"].item() == pytest.approx(10)


def test_a_run_that_stopped_goes_on_as_if_it_had_not(bert: str, pairs: Path, tmp_path: Path) -> None:
    """What was best is in the checkpoint, and so is the head."""
    flags = ["--data", written(tmp_path / "lines.txt", 1), "--model", bert, "--val", pairs, "--eval-every", "1",
             "--batch-size", "4", "--precision", "fp32", "--learn-temperature", "--lr", "0.01"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*flags, "--output", whole, "--steps", "6", "--save-every", "3") == 0
    assert train(*flags, "--output", parts, "--steps", "6", "--save-every", "3") == 0
    shutil.rmtree(parts / "checkpoints" / "step-6")
    assert train(*flags, "--output", parts, "--steps", "6", "--save-every", "3", "--resume") == 0
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(parts) == losses(whole)
    protocols = [json.loads((run / "scores.json").read_text())["protocol"]["weights"] for run in (whole, parts)]
    assert protocols[0] == protocols[1]


def test_the_best_weights_are_exported_not_the_last(
    bert: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xmodal.evaluators.sentence_judge import SentenceJudge

    seen: list[np.ndarray] = []

    def development(_: SentenceJudge, model: Any) -> float:
        seen.append(model.encode(["the cat"])[0])
        return [0.1, 0.7, 0.3][len(seen) - 1]

    monkeypatch.setattr(SentenceJudge, "development", development)
    run = tmp_path / "run"
    flags = ["--data", written(tmp_path / "lines.txt", 1), "--model", bert, "--val", pairs, "--eval-every", "1"]
    assert train(*flags, "--output", run, "--lr", "0.01", *QUICK[2:], "--steps", "3") == 0
    found = xmodal.load(str(run)).encode(["the cat"])[0]
    np.testing.assert_allclose(found, seen[1], atol=1e-6)
    assert np.abs(found - seen[2]).max() > 1e-3


def test_adapters_are_trained_and_merged(bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "lines.txt", 1)
    run = tmp_path / "run"
    assert train("--data", data, "--model", bert, "--lora", "2", "--lr", "0.1", "--output", run, *QUICK) == 0
    said = capsys.readouterr().out
    assert "Trained: " in said
    assert "Nothing was scored" in said
    before, after = (xmodal.load(spec).encode(["the cat"]) for spec in (bert, str(run)))
    assert np.abs(before - after).max() > 1e-4


def test_built_in_prose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--batch-size", "64", "--steps", "3", "--vocabulary", "2000", "--output", run]
    assert train(*flags) == 0
    assert "preset quick" in capsys.readouterr().out
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["scores"]) >= {"same_topic@1", "tf_idf/same_topic@1", "chance/same_topic@1"}
    before, chance = scores["before training"]["same_topic@1"], scores["scores"]["chance/same_topic@1"]
    assert before["low"] > chance["high"]  # words in common are seen before any training


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("", [], "is empty"),
        ("one line\n", [], "at least 2 are needed"),
        ("a\nb\nc\nd\n", ["--temperature", "0"], "--temperature is 0.0"),
        ("a\nb\nc\nd\n", ["--dropout", "1"], "--dropout is 1.0"),
        ("a\nb\nc\nd\n", ["--layers", "9"], "2 layers"),
        ("a\nb\nc\nd\n", ["--val", "nowhere.tsv"], "nowhere.tsv"),
        ("a\nb\nc\nd\n", ["--columns", "text"], "file of lines"),
        ("a\nb\nc\nd\n", ["--poling", "cls"], "--pooling"),
    ],
)
def test_wrong_input(
    content: str, flags: list[str], said: str, bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.txt"
    data.write_text(content)
    assert train("--data", data, "--model", bert, "--output", tmp_path / "run", *QUICK, *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_text_is_text_and_what_is_none_is_replaced_and_counted(
    bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.txt"
    data.write_bytes(b"/etc/passwd\nhttp://localhost:1/x.png\ncaf\xe9 cat\nthe\0dog\n" + b"cat " * 25_000 + b"\nred\n")
    assert train("--data", data, "--model", bert, "--output", tmp_path / "run", *QUICK) == 0
    assert "2 texts held characters that are none" in capsys.readouterr().out
