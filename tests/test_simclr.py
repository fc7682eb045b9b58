"""The SimCLR recipe: its gradient, its run on a few pictures, going on after a stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import xmodal
from tests.recipe_cases import B, encoder, two_views
from xmodal.config import parse
from xmodal.encoders.image import ImageEncoder
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.pretrain import learning_rate, optimizer
from xmodal.train.simclr import PRESETS, Config, run, simclr

TINY: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 4, "image_size": 16, "warmup_epochs": None},
    **{"precision": "fp32", "knn_k": 5, "save_every": 2, "hold_out": 0.25},
}


def test_the_loss_is_the_papers() -> None:
    """Equation 1, literally, over what lightly's modules make of the same features with the same weights."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    config = Config(head_dim=8, temperature=0.3)
    method: Any = simclr(config, encoder()).train()
    features = method.encode(two_views(0))["views"]  # (B, 2, 16)
    loss, _ = method.objective({"views": features}, {}, Progress(0, 1, 1, B))

    head = SimCLRProjectionHead(16, 16, 8, num_layers=2, batch_norm=True).train()
    mine, theirs = (
        [m for m in layers.modules() if isinstance(m, torch.nn.Linear | torch.nn.modules.batchnorm._BatchNorm)]
        for layers in (method.head, head)
    )
    assert len(mine) == len(theirs) == 4
    for ours, other in zip(mine, theirs, strict=True):
        other.load_state_dict(ours.state_dict(), strict=False)
    together = head(torch.cat([features[:, 0], features[:, 1]]))
    assert loss.item() == pytest.approx(NTXentLoss(0.3)(together[:B], together[B:]).item(), rel=1e-5)

    rows = F.normalize(together.double(), dim=1)
    similar = (rows @ rows.T / 0.3).fill_diagonal_(float("-inf"))
    literal = torch.stack([similar[i].logsumexp(0) - similar[i, (i + B) % (2 * B)] for i in range(2 * B)])
    assert loss.item() == pytest.approx(literal.mean().item(), rel=1e-5)


def test_a_run_and_what_it_leaves(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    told = run(Config(data=str(colours), output=tmp_path / "run", **TINY))
    assert set(told["scores"]) >= {"knn/top1", "knn/macro_f1", "pixels/top1", "features/effective_rank"}
    assert told["protocol"]["pictures"] == 9
    assert told["protocol"]["voters"].startswith("27 of the 27 pictures")
    assert "Before training: knn/top1" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "knn" in page
    assert "green" in page  # of the confusion matrix
    model = xmodal.load(str(tmp_path / "run"))
    assert isinstance(model, ImageEncoder)
    assert model.encode_image([colours / "red" / "0.png"]).shape == (1, model.d)
    assert not any("head" in name for name in model.state_dict())


@pytest.mark.parametrize("by", ["adamw", "lars"])
def test_a_run_that_goes_on_is_the_run(by: Any, colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(colours), **{**TINY, "optimizer": by, "output": folder})
    run(config)
    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-4")
    (folder / "model.safetensors").unlink()
    run(replace(config, resume=True))
    assert (folder / "model.safetensors").read_bytes() == whole


def test_gains_and_biases_are_neither_decayed_nor_adapted() -> None:
    config = Config(head_dim=8)
    method = simclr(config, encoder())
    opt = optimizer(config)([g for g in method.parameter_groups() if g["params"]])
    for group in opt.param_groups:
        group["lr"] = 0.5
    gradients: dict[Tensor, Tensor] = {}
    for p in method.parameters():
        if p.requires_grad:
            p.grad = gradients[p] = torch.randn(p.shape)
    before = {p: p.detach().clone() for p in gradients}
    opt.step()
    for p, g in gradients.items():
        if p.ndim == 1:
            expected = before[p] - 0.5 * g
        else:
            g = g + config.wd * before[p]
            expected = before[p] - 0.5 * 0.001 * before[p].norm() / gradients[p].norm() * g
        assert torch.allclose(p, expected, rtol=1e-3, atol=1e-6)
    assert not method.head[-1].bias.requires_grad  # type: ignore[index, union-attr]


def test_the_rate_grows_with_the_batch() -> None:
    class Data:
        global_batch, steps_per_epoch = 4096, 312

    rate = learning_rate(Config(), Data())(31200)  # type: ignore[arg-type]
    assert max(rate(step) for step in range(31200)) == pytest.approx(4.8)  # 0.3 · 4096 / 256
    assert rate(3119) == pytest.approx(4.8)  # ten epochs of warm-up
    assert rate(1559) == pytest.approx(2.4)
    assert rate(31199) < 1e-6


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "quick"),
        (["--data", "x", "--model", "small"], "quick"),
        (["--data", "x", "--model", "timm:resnet18"], "paper"),
        (["--preset", "paper"], "paper"),
    ],
)
def test_presets(flags: list[str], preset: str) -> None:
    found = parse(Config, flags, prog="", presets=PRESETS, choose_preset=Config.preset_for_machine)
    assert found.preset == preset
    assert (found.optimizer, found.temperature) == (("lars", 0.1) if preset == "paper" else ("adamw", 0.2))


def test_pictures_without_classes(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(colours.glob("*/*.png"))):
        (flat / f"{i}.png").write_bytes(file.read_bytes())
    told = run(Config(data=str(flat), output=tmp_path / "run", **TINY))
    assert set(told["scores"]) == {"features/uniformity", "features/effective_rank"}
    assert "has no classes: features are judged by their spread alone." in capsys.readouterr().out
    told = run(Config(data=str(flat), output=tmp_path / "nothing held out", **{**TINY, "hold_out": 0.0, "steps": 1}))
    assert told["scores"] == {}


def test_wrong_input(colours: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hold_out": 1.5}, "--hold-out is 1.5; expected at least 0, less than 1"),
        ({"temperature": 0.0}, "--temperature is 0.0; expected more than 0"),
        ({"image_size": 2}, "--image-size is 2; expected at least 8"),
    ]
    for changed, said in cases:
        with pytest.raises(InputError, match=said):
            replace(Config(), **changed).check()
    with pytest.raises(InputError, match="fewer than one global batch"):
        run(Config(data=str(colours), output=tmp_path / "run", **{**TINY, "batch_size": 64}))
    with pytest.raises(InputError, match="names no image tower"):
        run(Config(data=str(colours), output=tmp_path / "run", **{**TINY, "model": "smal"}))
    with pytest.raises(InputError, match="--micro-batch would change the result"):
        run(Config(data=str(colours), output=tmp_path / "micro", **{**TINY, "micro_batch": 4}))
    assert not (tmp_path / "run").exists()
