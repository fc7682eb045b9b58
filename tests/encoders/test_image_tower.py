"""Image towers taken apart: features before the projection, and behind it what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xmodal.encoders.batch_norm import BatchNorm
from xmodal.encoders.heads import Headed, Mlp
from xmodal.encoders.image import ImageEncoder, open_image_encoder
from xmodal.encoders.image_tower import ImageTower, _taken_apart, open_image_tower
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.small_resnet import SmallResNet
from xmodal.errors import InputError


def open_clips_transformer() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, width=12, layers=1, heads=2, mlp_ratio=2.0, output_dim=8, pool_type="tok"
    )


def open_clips_timm() -> nn.Module:
    from open_clip.timm_model import TimmModel

    return TimmModel("resnet10t", embed_dim=8, image_size=32, pool="avg", proj="linear", pretrained=False)


def transformers_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    from xmodal.encoders.hf import DualImage

    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    text = {**sizes, "vocab_size": 20, "eos_token_id": 19}
    return DualImage(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)))


def headed() -> nn.Module:
    return Headed(SmallResNet((4, 12)), Mlp(12, 8))


@pytest.mark.parametrize("make", [open_clips_transformer, open_clips_timm, transformers_clip, headed])
def test_behind_the_head_is_the_whole_model(make) -> None:
    torch.manual_seed(0)
    whole = make().eval()
    names = set(whole.state_dict())
    shorter, head = _taken_apart(whole)
    assert head is not None
    pixels = torch.randn(3, 3, 32 if make is open_clips_timm else 16, 32 if make is open_clips_timm else 16)
    with torch.no_grad():
        before = shorter(pixels)
        assert before.shape[1] == (512 if make is open_clips_timm else 12)
        assert torch.allclose(head(before), whole(pixels), atol=1e-6)
        assert whole(pixels).shape == (3, 8)
    assert set(whole.state_dict()) == names  # the model itself has lost nothing


def test_both_kinds_of_rows() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(SmallResNet((4, 12)), 12, preparation=Preparation(16, 16), description={}).eval()
    head = nn.Linear(12, 5)
    tower = ImageTower(encoder, head)
    pictures = [np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8) for i in range(3)]
    found = tower.apart(tower.encode_image(pictures, batch_size=2))
    with torch.no_grad():
        features = encoder(encoder.preparation.stack(pictures))
    assert torch.allclose(found["before_head"], F.normalize(features, dim=1), atol=1e-6)
    assert torch.allclose(found["after_head"], F.normalize(head(features), dim=1), atol=1e-6)
    assert tower.widths == {"before_head": 12, "after_head": 5}
    assert torch.equal(ImageTower(encoder, None).apart(torch.eye(12))[""], torch.eye(12))


def test_specs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    open_image_encoder("small", 16).save(tmp_path / "run")
    picture = [np.zeros((20, 20, 3), dtype=np.uint8)]
    theirs = open_image_encoder(str(tmp_path / "run")).eval().encode_image(picture)
    tower = open_image_tower(str(tmp_path / "run"))
    assert torch.allclose(tower.encode_image(picture), theirs, atol=1e-6)
    assert tower.head is None
    assert open_image_tower(str(tmp_path / "run"), 24).preparation.height == 24
    # A tower with a BatchNorm that can't be trained over processes can be judged all the same.
    assert open_image_tower("timm:mobilenetv3_small_050/random", 32).encode_image(picture).shape == (1, 1024)
    with pytest.raises(InputError, match="can't be given the statistics of all processes"):
        open_image_tower("timm:mobilenetv3_small_050/random", 32, frozen=False)
    trained = open_image_tower("timm:resnet10t/random", 32, frozen=False).encoder
    assert any(isinstance(m, BatchNorm) for m in trained.modules())
    for spec, said in (("st:x", "has no image tower"), ("nothing", "No model 'nothing'"), ("timmy:x", "No model spec")):
        with pytest.raises(InputError, match=said):
            open_image_tower(spec)
