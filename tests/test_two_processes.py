"""One launch of two processes for all that must be the same on any number of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.two_processes import QUICK, SPOILED, spoil, told_of_embedding, told_of_sentences
from xmodal.benchmarks.cost import Job, traffic
from xmodal.embedding import embed, embedder
from xmodal.train import simcse
from xmodal.train.clip import Config, run


def launch(processes: int, folder: Path) -> list[dict]:
    program = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*torchrun, str(program), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    files = [folder / f"rank{r}.json" for r in range(processes)]
    return [{"folder": str(folder), **json.loads(file.read_text())} for file in files]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    write_pairs(folder)
    return launch(2, folder)


def write_pairs(folder: Path) -> None:
    """Forty pictures of blocks with a caption each, every fifth to be evaluated on, one broken."""
    lines = ["filepath,caption,split"]
    for n in range(40):
        picture = np.full((32, 32, 3), 255, dtype=np.uint8)
        picture[n % 8 * 3 : n % 8 * 3 + 10, n // 8 * 4 : n // 8 * 4 + 8] = (n * 6, 200 - n * 5, 90)
        Image.fromarray(picture).save(folder / f"{n}.png")
        lines.append(f"{n}.png,block {n % 8} down {n // 8} across,{'train' if n % 5 else 'val'}")
    (folder / "7.png").write_bytes(b"")
    write_sentences(folder)
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")


def write_sentences(folder: Path) -> None:
    """Triplets to train on, and pairs with a score."""
    rng = np.random.default_rng(0)
    words = [
        "a",
        "the",
        "cat",
        "dog",
        "bird",
        "runs",
        "sleeps",
        "sings",
        "on",
        "in",
        "park",
        "house",
        "tree",
        "red",
        "blue",
        "old",
    ]
    said = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(240)]
    rows = ["\t".join(said[i : i + 3]) for i in range(0, 180, 3)]
    (folder / "triplets.tsv").write_text("\n".join(["anchor\tpositive\tnegative", *rows]) + "\n")
    rows = [f"{said[i]}\t{said[i + 1]}\t{i % 11 / 2}" for i in range(180, 240, 2)]
    (folder / "scored.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")


def test_there_are_two(found: list[dict]) -> None:
    assert [f["processes"] for f in found] == [2, 2]
    assert all(f["objects"] == [0, 1] and f["first"] == 0 for f in found)


def test_losses_and_their_gradients_are_those_of_one_process(found: list[dict], tmp_path: Path) -> None:
    for f in [*found, *launch(4, tmp_path)]:
        assert len(f["loss"]) == 165
        assert {name: worst for name, worst in f["loss"].items() if not worst < 1e-12} == {}


def test_a_loss_moves_its_rows_twice_and_no_more(found: list[dict]) -> None:
    for f in found:
        for name, (rows, width, of_rows, others) in f["moved"].items():
            gathered = {"nt_xent": 2, "sup_con": 2, "simcse": 2}.get(name, 1) * rows  # two views; keys and negatives
            padded = gathered + 2  # one process has a row less a tower
            assert 2 * gathered * width <= of_rows <= 2 * padded * width, name
            assert others <= 16 * padded, name


def test_the_rows_that_move_are_those_of_the_formula(found: list[dict]) -> None:
    for f in found:
        rows, width, of_rows, _ = f["moved"]["clip, uniform"]
        job = Job(pairs=1, devices=2, batch=-(-rows // 2), micro_batch=1, width=width, trained=0, other=0, largest=0)
        assert sum(traffic(job).values()) == 4 * of_rows / 2  # of a ring of two each sends half of what all end up with


def test_a_gradient_that_is_not_finite_on_one_process_skips_the_step_on_all(
    found: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(found[0]["folder"])
    assert [f["spoiled"]["taken"] for f in found] == [[0, 1, 3]] * 2
    assert [f["spoiled"]["apart"] for f in found] == [0.0] * 2
    lines = [json.loads(line) for line in (folder / "spoiled" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped_step" in line] == [3]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert all("not finite in 5 steps in a row, up to step 5" in f["spoiled"]["end"] for f in found)

    # One process that skips the same step has the same weights.
    spoil(monkeypatch.setattr, {2})
    run(Config(data=str(folder / "pairs.csv"), output=folder / "spoiled alone", batch_size=16, **SPOILED))
    two, one = (load_file(folder / n / "model.safetensors") for n in ("spoiled", "spoiled alone"))
    assert two.keys() == one.keys()
    assert all((two[name] - one[name]).abs().max() < 1e-5 for name in one)  # which no NaN is


def test_every_parameter_has_the_gradient_of_one_process(found: list[dict]) -> None:
    for f in found:
        assert len(f["step"]) == 8
        for name, worst in f["step"].items():
            assert worst < (1e-12 if "float64" in name else 1e-6), name


def test_weights_agree_after_twelve_steps(found: list[dict]) -> None:
    assert all(f["weights after 12 steps"] < 1e-5 for f in found)


def test_embeddings_are_those_of_one_process(found: list[dict]) -> None:
    assert all(f["embeddings"] < 1e-6 for f in found)


def test_the_recipe_trains_alike_and_goes_on_on_one_process(found: list[dict]) -> None:
    folder = Path(found[0]["folder"])
    one = Config(data=str(folder / "pairs.csv"), output=folder / "one", batch_size=16, **QUICK)
    run(one)
    logs = [
        [json.loads(line) for line in (folder / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")
    ]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
        assert b["scale"] == pytest.approx(a["scale"], rel=1e-6)
    skipped = [(folder / name / "skipped.jsonl").read_text() for name in ("one", "two")]
    assert skipped[0] == skipped[1] != ""

    # Two processes' run, its last checkpoint taken away, goes on on one: the same samples, the same curve.
    shutil.rmtree(folder / "two" / "checkpoints" / "step-6")
    run(dataclasses.replace(one, output=folder / "two", resume=True))
    again = [json.loads(line) for line in (folder / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in logs[0]], abs=1e-5)


def test_sentences_train_and_score_alike(found: list[dict]) -> None:
    folder = Path(found[0]["folder"])
    simcse.run(simcse.Config(output=folder / "sentences one", batch_size=16, **told_of_sentences(folder)))
    lines, scores = [], []
    for name in ("sentences one", "sentences two"):
        logged = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        lines.append([(line["loss"], line["grad_norm"]) for line in logged if "loss" in line])
        told = json.loads((folder / name / "scores.json").read_text())["scores"]
        scores.append([score[end] for score in told.values() for end in ("value", "low", "high")])
    assert len(lines[0]) == 4
    assert np.array(lines[1]) == pytest.approx(np.array(lines[0]), rel=1e-5)
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_two_processes_embed_to_the_bytes_of_one(kind: str, found: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(found[0]["folder"])
    monkeypatch.setattr(embedder, "SIZE", {"text": 4, "image": 6})
    about = embed.run(embed.Config(output=folder / f"{kind}s one", **told_of_embedding(folder, kind)))
    assert (about["rows"], about["skipped"]) == ((39, 1) if kind == "image" else (40, 0))
    one, two = ({f.name: f.read_bytes() for f in (folder / f"{kind}s {n}").iterdir()} for n in ("one", "two"))
    assert one == two
    assert len(one) == (4 if kind == "image" else 3)


@pytest.mark.parametrize(("moment", "step"), [("step", 3), ("evaluation", 2), ("saving", 5)])
def test_asked_on_one_process_both_stop_soon_and_the_resumed_run_is_the_run(
    moment: str, step: int, found: list[dict]
) -> None:
    folder = Path(found[0]["folder"])
    for f in found:
        said, seconds = f["stopped"][moment]
        assert said == f"Stopped after step {step} of 6. With --resume it goes on."
        assert seconds < 20
    whole, again = folder / "not stopped", folder / f"stopped {moment}"
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, again)]
    for one, other in zip(*logs, strict=True):  # evaluations included, that which was cut off too
        assert {**one, "pairs_per_second": 0} == {**other, "pairs_per_second": 0}


def test_sums_of_gradients(found: list[dict]) -> None:
    for f in found:
        assert f["sums"] == {
            "nobody": True,
            "first": [5.0] * 3,
            "both": [3.0] * 3,
            "wide": [3.0] * 2,
            "extra": [4.0, 1.0],
            "reduce": [3.0] * 2,
        }
