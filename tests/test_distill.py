"""`xmodal train clip --distill`: rows of the teacher come to the pairs they belong to, and the run is a run as any."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

import xmodal
from tests.encoders import hubs
from tests.recipe_cases import B, pairs, taught_pairs, towers
from xmodal.cli import main
from xmodal.config import parse
from xmodal.data.source import open_pairs
from xmodal.data.stable_id import stable_id
from xmodal.embedding.embed import Config as Embed
from xmodal.embedding.embed import run as embed
from xmodal.embedding.teacher import open_teacher
from xmodal.errors import InputError
from xmodal.finetune import Towers
from xmodal.method import Progress
from xmodal.objectives import distill_loss
from xmodal.train.clip import Config, clip

QUICK = ["--preset", "quick", "--batch-size", "8", "--steps", "2", "--precision", "fp32", "--vocabulary", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{hubs.clip(tmp_path_factory.mktemp('hub') / 'clip')}"


@pytest.fixture
def teacher(model: str, picture_pairs: Path, tmp_path: Path) -> Path:
    """Fourteen pictures, the first of which has two more captions."""
    lines = picture_pairs.read_text().splitlines()
    lines += [lines[1].replace("\t", f"\t{word} ", 1) for word in ("now", "then")]
    picture_pairs.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "teacher"
    embed(Embed(model=model, data=str(picture_pairs), kind="pairs", output=folder))
    return folder


def test_the_loss_is_clips_and_the_distance_from_the_teacher() -> None:
    method: Any = clip(Config(distill=Path("teacher"), distill_weight=0.5), Towers(towers()), 20.0).double()
    batch = taught_pairs(0)
    rows, targets = method.encode(batch), method.targets(batch)
    loss, metrics = method.objective(rows, targets, Progress(0, 1, 1, B))
    alone, _ = clip(Config(), Towers(method.towers)).objective(rows, targets, Progress(0, 1, 1, B))
    teacher = batch["teacher_image"], batch["teacher_text"]
    distance = distill_loss(rows["image"], rows["text"], method.log_scale.exp(), *teacher, 20.0)
    assert loss.item() == pytest.approx(alone.item() + distance.item() / 2)
    assert metrics["distill"].item() == pytest.approx(distance.item())
    assert "teacher_image" not in clip(Config(), Towers(method.towers)).targets(pairs(0))


@pytest.mark.parametrize("captions", [1, 3, "all"])
def test_rows_belong_to_their_picture_and_their_text(
    captions: Any, model: str, teacher: Path, picture_pairs: Path
) -> None:
    from xmodal.data.batches import Batches

    source, _ = open_pairs(str(picture_pairs), None)
    taught = open_teacher(teacher, source)
    batches = Batches(
        *(taught.of(source),),
        batch=9,
        part=(2, 8),
        seed=0,
        prepare_images=lambda some, draws: torch.zeros(len(some), 1),
        tokenize=lambda texts: torch.zeros(len(texts), 1),
        captions=captions,
    )
    towers = xmodal.load(model, device="cpu")
    text_of = {stable_id(text): text for row in range(len(source)) for text in source.texts(row)}
    lessons = pickle.loads(pickle.dumps(taught)).beside(batches)  # as a worker that was not forked has it
    for step in range(3):
        batch, _ = lessons[step]
        there = batch.get("text_there", torch.ones_like(batch["text_id"], dtype=torch.bool))
        images = towers.encode_image([source.file(row) for row in batch["row"].tolist()])
        texts = towers.encode_text([text_of[one] for one in batch["text_id"][there].tolist()])
        torch.testing.assert_close(batch["teacher_image"], images)
        torch.testing.assert_close(batch["teacher_text"][there], texts)
        assert not batch["teacher_text"][~there].any()
    assert taught.scale == pytest.approx(towers.scale)


@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(["--captions", "all", "--micro-batch", "3"], marks=pytest.mark.slow),
        ["--lock-image", "--lock-text"],
    ],
)
def test_a_run_goes_on_to_the_same_bytes(more: list[str], teacher: Path, picture_pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["train", "clip", "--data", str(picture_pairs), "--output", str(folder), *QUICK, "--save-every", "1", *more]
    flags += ["--distill", str(teacher), "--distill-weight", "2"]
    if "--lock-text" in more:  # features in the place of pictures and texts
        model = json.loads((teacher / "images" / "index.json").read_text())["model"]
        flags += ["--image-tower", model, "--text-tower", model, "--preset", "heads"]
    assert main(flags) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["distill"] > 0 and line["loss"] > 2 * line["distill"] for line in lines)
    whole = (folder / "model.safetensors").read_bytes()

    shutil.rmtree(folder / "checkpoints" / "step-2")
    (folder / "model.safetensors").unlink()
    moved = teacher.rename(tmp_path / "moved")  # the same rows elsewhere are the same
    assert main([*flags, "--resume", "--distill", str(moved)]) == 0
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_run_goes_on_with_the_teacher_it_began_with(
    model: str, teacher: Path, picture_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    flags = ["train", "clip", "--data", str(picture_pairs), "--output", str(folder), *QUICK, "--workers", "1"]
    assert main([*flags, "--distill", str(teacher)]) == 0
    embed(Embed(model=model, data=str(picture_pairs), kind="pairs", output=other, dtype="float16"))
    capsys.readouterr()
    for others in ([], ["--distill", str(other)]):
        assert main([*flags, "--resume", *others]) == 2
        assert "another teacher's rows, or none" in capsys.readouterr().err


def test_rows_of_other_data_missing_ones_and_other_folders_are_told_with_numbers(
    teacher: Path, picture_pairs: Path, tmp_path: Path
) -> None:
    source, _ = open_pairs(str(picture_pairs), None)
    with pytest.raises(InputError, match=r"run holds no teacher's rows .* xmodal embed --model TEACHER"):
        open_teacher(tmp_path / "run", source)
    text = picture_pairs.read_text()
    picture_pairs.write_text("\n".join(text.splitlines()[:-3]) + "\n")
    with pytest.raises(InputError, match=r"of other data .* 14 pictures and 16 texts there, 14 and 14 in .*pairs"):
        open_teacher(teacher, open_pairs(str(picture_pairs), None)[0])
    picture_pairs.write_text(text.replace("now", "ere"))
    with pytest.raises(InputError, match="14 and 16 in .*, but other ones"):
        open_teacher(teacher, open_pairs(str(picture_pairs), None)[0])
    picture_pairs.write_text(text)

    for name, counts in (("texts", "14 pictures of 14, .* 15 texts of 16"), ("images", "13 pictures of 14")):
        folder = teacher / name
        rows, items = np.load(folder / "embeddings.npy"), parquet.read_table(folder / "items.parquet")
        np.save(folder / "embeddings.npy", rows[:-1])
        with pytest.raises(InputError, match="damaged"):
            open_teacher(teacher, source)
        parquet.write_table(items[:-1], folder / "items.parquet")
        about = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**about, "rows": len(rows) - 1}))
        with pytest.raises(InputError, match=f"lacks rows: it has {counts}"):
            open_teacher(teacher, source)


def test_a_picture_that_the_teacher_could_not_read_is_no_picture_of_the_batch(
    model: str, picture_pairs: Path, tmp_path: Path
) -> None:
    source, _ = open_pairs(str(picture_pairs), None)
    broken, whole = source.file(3), source.file(3).read_bytes()  # type: ignore[attr-defined]
    broken.write_bytes(b"x" * len(whole))
    folder = tmp_path / "teacher"
    assert embed(Embed(model=model, data=str(picture_pairs), kind="pairs", output=folder))["images"]["skipped"] == 1
    taught = open_teacher(folder, source)
    batch = {"row": torch.tensor([2, 4]), "text_id": torch.tensor([stable_id(source.texts(r)[0]) for r in (2, 4)])}
    assert len(taught.rows(batch)["teacher_image"]) == 2
    broken.write_bytes(whole)
    with pytest.raises(InputError, match=r"can be read now, but could not be when .* make it again"):
        taught.rows({**batch, "row": torch.tensor([2, 3])})


def test_flags_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="--distill-weight 2.0 means nothing without --distill"):
        parse(Config, ["--distill-weight", "2"], prog="")
    with pytest.raises(InputError, match="--distill-weight is 0.0; expected a number above 0"):
        parse(Config, ["--distill", "x", "--distill-weight", "0"], prog="")
