"""Image encoders: opened from every kind of spec, saved and opened again, with the statistics of all processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xmodal
import xmodal.encoders
from xmodal.encoders.batch_norm import BatchNorm
from xmodal.encoders.image import ImageEncoder, open_image_encoder
from xmodal.errors import BadSample, InputError

RESNET = "timm:resnet10t/random"


@pytest.fixture(scope="module")
def small() -> ImageEncoder:
    torch.manual_seed(0)
    return open_image_encoder("small")


@pytest.fixture
def pictures(tmp_path: Path) -> list:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (40, 33, 3), dtype=np.uint8) for _ in range(3)]
    file = tmp_path / "a.png"
    Image.fromarray(arrays[0]).save(file)
    return [str(file), Image.fromarray(arrays[1]), arrays[2]]


def test_small(small: ImageEncoder, pictures: list) -> None:
    rows = small.encode_image(pictures)
    assert rows.shape == (3, small.d) == (3, 256)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))
    assert torch.allclose(small.encode_image(pictures[1:], batch_size=1), rows[1:], atol=1e-6)
    assert small.encode_image([]).shape == (0, 256)
    assert small.training
    assert sum(p.numel() for p in small.parameters()) < 1.5e6
    with pytest.raises(BadSample):
        small.encode_image(["gone.png"])


def test_features_are_not_normalised_and_views_are_an_axis(small: ImageEncoder) -> None:
    views = torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8)
    rows = small(views)
    assert rows.shape == (4, 2, 256)
    small.eval()
    assert torch.allclose(small(views), torch.stack([small(views[:, 0]), small(views[:, 1])], 1), atol=1e-6)
    assert not torch.allclose(small(views).norm(dim=-1), torch.ones(4, 2), atol=0.1)
    assert small(torch.zeros(2, 3, 14, 14, dtype=torch.uint8)).shape == (2, 256)  # a crop of another size
    small.train()


@pytest.mark.parametrize("spec", ["small", RESNET])
def test_saved_and_opened_again(spec: str, pictures: list, tmp_path: Path) -> None:
    encoder = open_image_encoder(spec, side=48)
    encoder(torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8))  # moves the statistics
    encoder.save(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]
    again = xmodal.load(str(tmp_path / "run"))
    assert isinstance(again, ImageEncoder)
    assert not again.training
    assert again.preparation == encoder.preparation
    assert torch.equal(again.encode_image(pictures), encoder.encode_image(pictures))
    assert open_image_encoder(str(tmp_path / "run"), side=32).preparation.height == 32


def test_load_opens_a_tower_of_timm() -> None:
    encoder = xmodal.load(RESNET)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.d == 512


def test_every_batch_norm_is_ours_and_the_weights_stay(pictures: list) -> None:
    import timm

    torch.manual_seed(1)
    theirs = timm.create_model("resnet10t", num_classes=0).eval()
    torch.manual_seed(1)
    encoder = open_image_encoder(RESNET).eval()
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert norms
    assert all(type(m) is BatchNorm for m in norms)
    assert encoder.backbone.state_dict().keys() == theirs.state_dict().keys()
    pixels = encoder.preparation.stack(pictures)
    with torch.no_grad():
        expected = theirs((pixels / 255 - encoder.mean) / encoder.std)
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


def test_what_is_no_image_encoder(tmp_path: Path) -> None:
    for spec, said in {
        "smal": "--model smal names no image tower.\nForms: small, timm:",
        "tim:resnet18": "did you mean 'timm'",
        "timm:resnet10x": "timm has no model 'resnet10x'",
        str(tmp_path): "is no run folder of an image encoder",
    }.items():
        with pytest.raises(InputError, match=said):
            open_image_encoder(spec)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="is no run folder of an image encoder"):
        open_image_encoder(str(tmp_path))
    with pytest.raises(InputError, match="takes no pictures of 32 × 32 pixels"):
        open_image_encoder("timm:vit_tiny_patch16_224/random", side=32)


def test_a_folder_of_an_image_encoder_has_no_text_tower(small: ImageEncoder, tmp_path: Path) -> None:
    small.save(tmp_path)
    with pytest.raises(InputError, match="holds an image encoder, which has no text tower"):
        xmodal.encoders.load_towers(str(tmp_path))


def test_weights_of_another_model(small: ImageEncoder, tmp_path: Path) -> None:
    small.save(tmp_path)
    told = json.loads((tmp_path / "model.json").read_text())
    told["image"]["widths"] = [16, 32]
    (tmp_path / "model.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="is of another model"):
        xmodal.load(str(tmp_path))
