"""open_clip's models under our interface: the same embeddings, before and after a round through our own files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import xmodal
from xmodal.encoders.trainable import lock
from xmodal.errors import InputError

TEXTS = ["a photo of a cat", "Two dogs, running & barking!", ""]
# Seconds to build, yet every part of a CLIP model is in it.
TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SEES = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as open_clip saves it, of the plain CLIP class."""
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("tiny")
    model = open_clip.CLIP(**TINY)
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, where / "open_clip_model.safetensors")
    (where / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": SEES}))
    return where


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (33, 32), (90, 31))]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        images = torch.stack([preprocess(p) for p in pictures()])  # type: ignore[operator]
        return model.encode_image(images, normalize=True), model.encode_text(tokenizer(TEXTS), normalize=True)


def test_embeddings_are_open_clips(folder: Path, theirs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    model = xmodal.load(f"open_clip:local-dir:{folder}", device="cpu")
    assert model.scale == pytest.approx(np.exp(4.0), rel=1e-5)
    model.save(tmp_path / "ours")
    for ours in (model, xmodal.load(str(tmp_path / "ours"), device="cpu")):
        torch.testing.assert_close(ours.encode_image(pictures()), theirs[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.encode_text(TEXTS), theirs[1], rtol=0, atol=1e-6)


def test_a_locked_tower_has_no_gradient_and_stays_in_evaluation_mode(folder: Path) -> None:
    from xmodal.encoders import build

    towers = build(f"open_clip:local-dir:{folder}", train_tokenizer=None)
    lock(towers, "image")
    towers.train()
    assert not towers.image.training
    assert towers.text.training
    out = towers(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8), text=towers.tokenizer(TEXTS[:2]))
    (out["image"] * out["text"]).sum().backward()
    assert all(p.grad is None for p in towers.image.parameters())
    assert any(p.grad is not None for p in towers.text.parameters())


def test_what_is_no_dual_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="CoCa"):
        xmodal.load("open_clip:coca_base")


def test_the_recipe_starts_from_it_with_a_tower_locked(folder: Path, tmp_path: Path) -> None:
    from xmodal.cli import main

    lines = ["filepath,caption,split"]
    for n, picture in enumerate(pictures() * 4):
        picture.save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,picture {n},{'train' if n < 9 else 'val'}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    spec, run = f"open_clip:local-dir:{folder}", tmp_path / "run"
    arguments = ["--data", str(tmp_path / "pairs.csv"), "--model", spec, "--output", str(run), "--lock-image"]
    assert (
        main(["train", "clip", *arguments, "--batch-size", "8", "--steps", "3", "--lr", "1e-3", "--warmup", "0"]) == 0
    )
    assert "preset: finetune" in (run / "config.yaml").read_text()
    before, after = (xmodal.load(s, device="cpu") for s in (spec, str(run)))
    assert torch.equal(before.encode_image(pictures()), after.encode_image(pictures()))
    assert not torch.allclose(before.encode_text(TEXTS), after.encode_text(TEXTS), atol=1e-4)
    assert before.scale != after.scale
