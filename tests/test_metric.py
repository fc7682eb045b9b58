"""The metric recipe: its four objectives, batches that teach nothing, its run, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import xmodal
from tests.recipe_cases import B, classes, encoder
from xmodal.cli import main
from xmodal.config import parse
from xmodal.data.pictures import open_pictures
from xmodal.encoders.image import open_image_encoder, with_embedding
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.objectives import n_pair_loss, triplet_loss
from xmodal.pretrain import at_least
from xmodal.train.metric import PRESETS, Config, metric, run, shorten

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 12, "steps": 2, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25},
}
FIRST = Progress(0, 1, 1, B)


def loss_of(config: Config, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    method: Any = metric(config, encoder())
    return method.objective({"rows": rows}, {"label": labels}, FIRST)[0]


def test_each_objective_is_its_papers() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(B, 5, dtype=torch.float64), classes(0)["label"]
    unit = F.normalize(rows, dim=1)
    found = loss_of(Config(), rows, labels)
    assert found.item() == triplet_loss(unit, labels, margin=0.2, mining="semi_hard").item()
    assert loss_of(Config(margin=0.5), rows, labels).item() == triplet_loss(unit, labels, margin=0.5).item()

    # Sohn 2016, equation 4, of raw rows, and the mean of their squares.
    products = rows[0::2] @ rows[1::2].T
    expected = (products.logsumexp(1) - products.diag()).mean() + 0.001 * rows.square().sum(1).mean()
    assert loss_of(Config(objective="n_pair"), rows, labels).item() == pytest.approx(expected.item())

    apart, same = torch.cdist(unit, unit), labels[:, None] == labels
    each = torch.where(same, apart.square(), (1 - apart).clamp_min(0).square())
    upper = torch.ones(B, B).triu(1).bool()
    assert loss_of(Config(objective="margin"), rows, labels).item() == pytest.approx(each[upper].mean().item())

    logits = 10 * unit @ unit.T - 5
    each = F.binary_cross_entropy_with_logits(logits, same.double(), reduction="none")
    found = loss_of(Config(objective="logistic"), rows, labels)
    assert found.item() == pytest.approx(each[upper].mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "mining"), [("triplet", "semi_hard"), ("triplet", "hard"), ("margin", "semi_hard")]
)
def test_a_batch_without_a_triplet_has_no_loss_a_gradient_and_is_counted(objective: Any, mining: Any) -> None:
    method: Any = metric(Config(objective=objective, mining=mining), encoder())
    rows = torch.randn(B, 5, requires_grad=True)
    for times, labels in enumerate((torch.zeros(B).long(), torch.arange(B)), 1):
        loss, figures = method.objective({"rows": rows}, {"label": labels}, FIRST)
        loss.backward()
        assert loss.item() == 0
        assert rows.grad is not None
        assert rows.grad.abs().max() == 0
        assert figures["empty_batches"] == times
    method.objective({"rows": rows}, classes(0), FIRST)
    assert method.state_dict()["empty"] == 2  # a checkpoint has it


def test_a_pair_that_a_stand_in_has_broken_is_left_out() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(B, 5), classes(0)["label"]
    labels[3] = 5
    rest = [0, 1, *range(4, B)]
    config = Config(objective="n_pair")
    assert loss_of(config, rows, labels) == loss_of(config, rows[rest], labels[rest])


def test_more_pictures_of_a_class_are_more_tuples_of_one_pair_each() -> None:
    torch.manual_seed(0)
    rows = torch.randn(B, 5, dtype=torch.float64)
    labels = torch.arange(B) // 4
    method: Any = metric(Config(objective="n_pair"), encoder(), 4)
    tuples = rows.view(3, 2, 2, 5)  # classes, tuples, a pair
    expected = [n_pair_loss(tuples[:, i, 0], tuples[:, i, 1], norm_weight=0.001) for i in range(2)]
    assert method.loss(rows, labels, 0).item() == pytest.approx((sum(expected) / 2).item())  # type: ignore[union-attr]
    labels[1] = 2  # the first class has no pair in the first tuple
    expected[0] = n_pair_loss(tuples[1:, 0, 0], tuples[1:, 0, 1], norm_weight=0.001)
    assert method.loss(rows, labels, 0).item() == pytest.approx((sum(expected) / 2).item())  # type: ignore[union-attr]


def test_n_pairs_begin_with_short_rows() -> None:
    """As sure as nothing is known: the loss of equal rows is ln N."""
    torch.manual_seed(0)
    whole = with_embedding(open_image_encoder("small", 32), 128)
    pictures = torch.randint(0, 256, (40, 3, 32, 32)).byte()
    labels = torch.arange(40) // 2
    before = whole(pictures).detach()
    shorten(whole, 128)
    after = whole(pictures).detach()
    assert torch.allclose(F.normalize(after, dim=1), F.normalize(before, dim=1), atol=1e-5)
    config = Config(objective="n_pair", norm_weight=0.0)
    assert loss_of(config, after, labels) < 1.1 * np.log(20) < loss_of(config, before, labels)


def test_as_many_pictures_of_a_class_as_the_classes_ask_for(colours: Path) -> None:
    pictures = open_pictures(str(colours))  # three classes
    assert at_least(4)(pictures, 12) == 4
    assert at_least(4)(pictures, 24) == 8
    assert at_least(4)(pictures, 20) == 10
    assert at_least(2)(pictures, 4) == 2
    assert at_least(2)(pictures, 9) == 3
    assert at_least(2, step=2)(pictures, 12) == 4


@pytest.mark.parametrize("objective", ["triplet", "n_pair", "margin", "logistic"])
def test_a_run_and_what_it_leaves(objective: Any, colours: Path, tmp_path: Path) -> None:
    config = Config(data=str(colours), output=tmp_path / "run", **{**TINY, "objective": objective})
    told = run(config)
    assert set(told["scores"]) >= {"knn/top1", "retrieval/R@1", "retrieval/R@8", "pixels/top1"}
    assert told["protocol"]["retrieval"].startswith("of 9 judged pictures")
    model = xmodal.load(str(tmp_path / "run"))
    assert model.d == 128
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 128)


def test_a_run_that_goes_on_is_the_run(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(colours), **{**TINY, "save_every": 1, "output": folder})
    run(config)
    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-2")
    (folder / "model.safetensors").unlink()
    run(replace(config, resume=True))
    assert (folder / "model.safetensors").read_bytes() == whole


def test_wrong_input(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(flat / f"{i}.png")
    assert main(["train", "metric", "--data", str(flat), "--preset", "quick", "--output", str(tmp_path / "a")]) == 2
    assert "metric learns from classes" in capsys.readouterr().err
    with pytest.raises(InputError, match="with 2 pictures of each class needs 6 classes, and there are 3"):
        run(Config(data=str(colours), output=tmp_path / "c", pictures_per_class=2, **{**TINY, "objective": "n_pair"}))
    with pytest.raises(InputError, match="--mining hard has no place here"):
        parse(Config, ["--objective", "n_pair", "--mining", "hard"], prog="")
    with pytest.raises(InputError, match="--pictures-per-class 3: n_pair needs pairs"):
        parse(Config, ["--objective", "n_pair", "--pictures-per-class", "3"], prog="")
    assert [p.name for p in tmp_path.iterdir() if p.name in "abc"] == []
