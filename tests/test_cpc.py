"""The CPC recipe: contexts that don't see what they predict, a W_k for each distance, pictures and sequences."""

from __future__ import annotations

import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xmodal
from tests.recipe_cases import B, encoder, patches, sequence_encoder, sequences
from xmodal.cli import main
from xmodal.config import parse
from xmodal.data.patches import PatchViews, cut, side_of_patches
from xmodal.data.sequences import open_windows
from xmodal.encoders.patches import MeanOverPatches, encoder_of_patches
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError
from xmodal.method import Progress
from xmodal.train.cpc import PRESETS, Config, cpc, run

PICTURES: dict[str, Any] = {
    **{"preset": "quick", **PRESETS["quick"], "batch_size": 8, "steps": 2, "image_size": 16, "save_every": 1},
    **{"precision": "fp32", "knn_k": 5, "hold_out": 0.25, "lr": 1e-3, "warmup": 0},
}
SEQUENCES: dict[str, Any] = {
    **{"preset": "text", **PRESETS["text"], "batch_size": 4, "steps": 2, "window": 40, "width": 8, "context_dim": 6},
    **{"precision": "fp32", "hold_out": 0.25, "save_every": 1, "warmup": 0},
}


def of_patches(**changed: Any) -> Any:
    return cpc(Config(**changed), encoder_of_patches(encoder())).double().train()


def of_sequences(**changed: Any) -> Any:
    changed = {"data": "prose", "width": 8, "ahead": 3, **changed}
    return cpc(Config(**changed), sequence_encoder()).double().train()


def loss_of(method: Any, z: Tensor, context: Tensor) -> Tensor:
    return method.objective({"z": z, "context": context}, {}, Progress(0, 1, 1, B))[0]


def test_a_patch_and_a_context_see_nothing_of_the_rows_below() -> None:
    """In training mode, where a BatchNorm would tell each patch of all others."""
    method, batch = of_patches(), patches(0)
    before = method.encode(batch)
    for row in range(7):
        changed = batch["patches"].clone()
        changed[:, 7 * (row + 1) :] = 255 - changed[:, 7 * (row + 1) :]
        after = method.encode({"patches": changed})
        for name in ("z", "context"):
            assert torch.equal(after[name][:, : row + 1], before[name][:, : row + 1])
            assert row == 6 or not torch.equal(after[name][:, row + 1], before[name][:, row + 1])
    z = before["z"].detach().requires_grad_()
    method.context(z)[:, 3].sum().backward()
    assert z.grad is not None
    assert z.grad[:, 4:].abs().max() == 0
    assert (z.grad[:, :4].abs().amax((0, 2, 3)) > 0).all()


def test_a_context_of_a_sequence_sees_no_later_step() -> None:
    method = of_sequences()
    z = method.encode(sequences(0))["z"].detach()
    before = method.towers.memory(z)[0]
    for t in range(z.shape[1] - 1):
        later = z.clone()
        later[:, t + 1 :] += 1
        after = method.towers.memory(later)[0]
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1], before[:, t + 1])


def test_the_loss_is_the_papers_with_a_matrix_for_each_distance() -> None:
    """Equation 4, literally: the softmax is over candidates z for a context."""
    method = of_sequences()
    made = method.encode(sequences(0))
    z, context = made["z"], made["context"]
    terms = []
    for k in (1, 2, 3):
        future, past = z[:, k:].flatten(0, 1), context[:, :-k].flatten(0, 1)
        scores = past @ method.transforms[k - 1].T @ future.T  # (n, n): a context's row over all candidates
        terms.append((scores.logsumexp(1) - scores.diag()).mean())
    loss = loss_of(method, z, context)
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-6)
    method.transforms.data[1] += torch.randn_like(method.transforms[1])
    changed = loss_of(method, z, context)
    scores = context[:, :-2].flatten(0, 1) @ method.transforms[1].T @ z[:, 2:].flatten(0, 1).T
    second = (scores.logsumexp(1) - scores.diag()).mean()
    assert changed.item() == pytest.approx((terms[0] + second + terms[2]).item() / 3, rel=1e-6)  # of distance 2 alone


def test_of_pictures_rows_are_predicted_that_share_no_pixel_with_the_context() -> None:
    picture = torch.arange(16 * 16).float().view(1, 1, 16, 16).expand(1, 3, 16, 16)
    rows = [set(row.flatten().tolist()) for row in cut(picture, 4).unflatten(1, (7, 7))[0]]
    assert rows[0] & rows[1]
    assert not rows[0] & rows[2]
    method = of_patches(ahead=2)
    made = method.encode(patches(0))
    terms = []
    for distance, transform in zip((2, 3), method.transforms, strict=True):
        past = made["context"][:, :-distance].flatten(0, 2)
        scores = past @ transform.T @ made["z"][:, distance:].flatten(0, 2).T
        terms.append((scores.logsumexp(1) - scores.diag()).mean().item())
    assert loss_of(method, made["z"], made["context"]).item() == pytest.approx(sum(terms) / 2, rel=1e-6)


def test_patches_are_the_papers() -> None:
    assert side_of_patches(Preparation(256, 256)) == 64
    picture = torch.arange(16 * 16).float().view(1, 1, 16, 16).expand(1, 3, 16, 16)
    grid = cut(picture, 4).unflatten(1, (7, 7))
    assert torch.equal(grid[0, 2, 5], picture[0, :, 4:8, 10:14])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    make = PatchViews(Preparation(64, 64))
    numbers = rng.random((3, make.draws))
    made = make(pictures, numbers)["patches"]
    assert made.shape == (3, 49, 3, 16, 16)
    assert made.dtype == torch.uint8
    assert torch.equal(made[:, :, 0], made[:, :, 2])  # grey
    borders = (made[:, :, 0] == 0).all(1)  # (3, 16, 16): one pixel of 16 is padding
    assert borders[:, -1].all()
    assert not borders[:, 3, :-1].any()
    assert torch.equal(make(pictures[1:], numbers[1:])["patches"], made[1:])  # whatever is in the batch beside them
    with pytest.raises(InputError, match="choose an --image-size that 8 divides"):
        side_of_patches(Preparation(36, 36))


def test_pictures_are_seen_as_the_mean_of_their_patches() -> None:
    method = of_patches().float()
    whole = method.export()
    pictures = torch.randint(0, 256, (2, 1, 16, 16)).expand(-1, 3, -1, -1).byte()
    with torch.no_grad():
        alone = method.towers(cut(pictures, 4)).mean(1)
        assert torch.allclose(whole(pictures), alone, atol=1e-3)  # grey of grey is 0.9999 of it
        coloured = pictures.clone()
        coloured[:, 0], coloured[:, 2] = 0, 0
        assert whole(coloured).shape == alone.shape
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in whole.modules())
    assert encoder_of_patches(whole).image is method.towers.image


def test_a_run_on_pictures(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(colours), output=folder, **PICTURES)
    told = run(config)
    assert set(told["scores"]) >= {"knn/top1", "pixels/top1", "features/effective_rank"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["information"] <= np.log(8 * 7 * 5) for line in lines)
    model = xmodal.load(str(folder))
    assert isinstance(model.image, MeanOverPatches)
    assert model.encode_image([colours / "red" / "0.png"]).shape == (1, model.d)
    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-2")
    run(replace(config, resume=True))
    assert (folder / "model.safetensors").read_bytes() == whole
    run(Config(data=str(colours), output=tmp_path / "more", **{**PICTURES, "model": str(folder), "steps": 1}))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Sixteen windows of 40, of each form."""
    made = {kind: tmp_path / f"data.{kind}" for kind in ("npy", "wav", "txt")}
    sound = np.sin(np.arange(1280) / 5)
    np.save(made["npy"], sound.astype(np.float64).reshape(2, 640))
    with wave.open(str(made["wav"]), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((sound[:640, None] * [20000, 10000]).astype("<i2").tobytes())
    made["txt"].write_text("to be or not to be. " * 32)
    return made


def test_windows(files: dict[str, Path]) -> None:
    train, held = open_windows(str(files["npy"]), 40, 0.25)
    assert held is not None
    assert (len(train), len(held), train.of_bytes) == (24, 8, False)
    assert np.allclose(held.read(np.array([0])).numpy(), np.sin((24 * 40 + np.arange(40)) / 5)[None])
    assert train.scale() == pytest.approx((0, 0.7), abs=0.05)
    sound, _ = open_windows(str(files["wav"]), 40, 0)
    assert sound.read(np.array([1]))[0, 0].item() == pytest.approx(np.sin(8) * 15000 / 2**15, abs=1e-3)
    text, _ = open_windows(str(files["txt"]), 40, 0.25)
    assert bytes(text.read(np.array([0]))[0].tolist()) == b"to be or not to be. to be or not to be. "
    train, held = open_windows("prose", 256, 0.1)
    assert held is not None
    assert len(train) > 2 * len(held) > 500
    assert train.fingerprint() != held.fingerprint()


@pytest.mark.parametrize("kind", ["npy", "wav", "txt"])
def test_a_run_on_sequences(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = Config(data=str(files[kind]), output=folder, **SEQUENCES)
    told = run(config)
    assert set(told["scores"]) == {f"prediction/{k}_ahead" for k in range(1, 5)}
    assert told["protocol"]["chance"] == 1 / told["protocol"]["windows"]
    model = xmodal.load(str(folder))
    rows = model.encode(
        ["to be or not to be", "that is the question"] if kind == "txt" else [np.ones(30), np.zeros(50)]
    )
    with pytest.raises(ValueError, match="at least 10 values, not 2"):
        model.encode(["to" if kind == "txt" else np.ones(2)])
    assert rows.shape == (2, 6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-2")
    run(replace(config, resume=True))
    assert (folder / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "preset"),
    [([], "quick"), (["--data", "prose"], "text"), (["--data", "a.wav"], "speech"), (["--preset", "paper"], "paper")],
)
def test_presets(flags: list[str], preset: str) -> None:
    found = parse(Config, flags, prog="", presets=PRESETS, choose_preset=Config.preset_for_machine)
    assert found.preset == preset
    assert found.ahead == {"quick": 3, "text": 4, "speech": 12, "paper": 5}[preset]


def test_wrong_input(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for flags, said in {
        ("--ahead", "6"): "--ahead is 6; expected at most 5",
        ("--augment", "simclr"): "--augment simclr has no place here",
        ("--data", "prose", "--window", "20"): "--window 20 is 3 steps, of which 4 can't be predicted",
    }.items():
        with pytest.raises(InputError, match=said):
            parse(Config, flags, prog="", presets=PRESETS, choose_preset=Config.preset_for_machine)
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "nan.npy", np.full(100, np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for name, said in {
        "cube.npy": "must hold numbers",
        "nan.npy": "not finite",
        "objects.npy": "holds no sequences",
        "broken.wav": "holds no sequences",
        "gone.txt": "Cannot read",
    }.items():
        with pytest.raises(InputError, match=said):
            open_windows(str(tmp_path / name), 40, 0.1)
    with pytest.raises(InputError, match="has 1 windows of 640"):
        open_windows(str(files["txt"]), 640, 0.1)
    flags = ["--data", str(tmp_path / "gone.npy"), "--output", str(tmp_path / "run")]
    assert main(["train", "cpc", *flags, "--preset", "speech"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
