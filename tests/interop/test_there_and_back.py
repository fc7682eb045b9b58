"""From open_clip to transformers and back, and the other way round: the same embeddings, the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import small_models
import torch
import transformers
from safetensors.torch import load_file
from small_models import CLIP, SIGLIP, changed

import xmodal
from xmodal.encoders.two_tower import TwoTower
from xmodal.interop.save import save_as
from xmodal.interop.verify import TEXTS, pictures

CLOSE = 1e-5  # on equal pixels and tokens

OPEN_CLIPS = {
    "gelu": CLIP,
    "tanh, other epsilons and ratios": changed(
        CLIP,
        vision_cfg={"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.5, "act_kwargs": {"approximate": "tanh"}},
        text_cfg={"norm_kwargs": {"eps": 1e-4}, "mlp_ratio": 101 / 48},
    ),
    "custom text, quickgelu, end mark by number": changed(
        CLIP,
        custom_text=True,
        quick_gelu=True,
        text_cfg={"pool_type": "eos", "eos_id": 49407},
        vision_cfg={"final_ln_after_pool": True},
    ),
    "siglip": SIGLIP,
    "siglip 2": changed(SIGLIP, text_cfg={"act_kwargs": {"approximate": "tanh"}}),
}
TRANSFORMERS: dict[str, Any] = {
    "clip, quick_gelu": lambda folder: small_models.clip_of_transformers(folder),
    "clip of old: gelu, the largest number, an epsilon": lambda folder: small_models.clip_of_transformers(
        folder, "gelu", end=2, layer_norm_eps=1e-3
    ),
    "siglip": lambda folder: small_models.siglip_of_transformers(folder),
}


@pytest.fixture(autouse=True)
def _timm() -> None:
    small_models.register_timm()


def of_open_clip(folder: Path, config: dict[str, Any]) -> str:
    if "init_logit_bias" in config:
        return small_models.siglip_of_open_clip(folder, config)
    return small_models.of_open_clip(folder, config)


def load(spec: str) -> TwoTower:
    return xmodal.load(spec, device="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


@torch.no_grad()
def both_sides(open_clips: Path, transformers_: Path) -> None:
    """The libraries' own models, opened by themselves, on the same pixels and tokens."""
    left, *_ = open_clip.create_model_and_transforms(f"local-dir:{open_clips}")
    siglip = json.loads((transformers_ / "config.json").read_text())["model_type"] == "siglip"
    right = (transformers.SiglipModel if siglip else transformers.CLIPModel).from_pretrained(transformers_)
    left.eval(), right.eval()
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(3, 50, (5, 16), generator=torch.Generator().manual_seed(1))
    if not siglip:
        tokens[:, 0] = 49406
        for row, end in enumerate((3, 15, 7, 1, 9)):
            tokens[row, end:] = 0 if row % 2 else 49407  # open_clip's way to fill up and transformers'
            tokens[row, end] = 49407
    unit = torch.nn.functional.normalize
    ours, theirs = left.encode_image(pixels), right.get_image_features(pixels).pooler_output
    torch.testing.assert_close(unit(ours), unit(theirs), rtol=0, atol=CLOSE)
    assert ours.std(0).min() > 0.01  # else pictures would be told apart by nothing
    ours, theirs = left.encode_text(tokens), right.get_text_features(tokens).pooler_output
    torch.testing.assert_close(unit(ours), unit(theirs), rtol=0, atol=CLOSE)
    assert ours.std(0).min() > 0.01
    assert left.logit_scale.item() == right.logit_scale.item()
    if siglip:
        assert left.logit_bias.item() == right.logit_bias.item()


@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_from_open_clip(name: str, tmp_path: Path) -> None:
    spec = of_open_clip(tmp_path / "original", OPEN_CLIPS[name])
    original = load(spec)
    there = save_as(original, tmp_path / "there", "hf")
    both_sides(tmp_path / "original", tmp_path / "there")
    back = save_as(load(f"hf:{tmp_path / 'there'}"), tmp_path / "back", "open_clip")
    assert max(there.image, there.text, back.image, back.text) < CLOSE
    first, last = weights(tmp_path / "original"), weights(tmp_path / "back")
    if name.startswith("custom"):  # plain CLIP is what it came back as
        last = open_clip.model.convert_to_custom_text_state_dict(last)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    final = load(f"open_clip:local-dir:{tmp_path / 'back'}")
    seen = pictures(original.preparation)
    torch.testing.assert_close(final.encode_image(seen), original.encode_image(seen), rtol=0, atol=CLOSE)
    torch.testing.assert_close(final.encode_text(TEXTS), original.encode_text(TEXTS), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_from_transformers(name: str, tmp_path: Path) -> None:
    spec = TRANSFORMERS[name](tmp_path / "original")
    there = save_as(load(spec), tmp_path / "there", "open_clip")
    both_sides(tmp_path / "there", tmp_path / "original")
    back = save_as(load(f"open_clip:local-dir:{tmp_path / 'there'}"), tmp_path / "back", "hf")
    assert max(there.image, there.text, back.image, back.text) < CLOSE
    first, last = weights(tmp_path / "original"), weights(tmp_path / "back")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    kinds = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("original", "back")]
    for tower in ("vision_config", "text_config"):
        for key in ("hidden_act", "layer_norm_eps", "intermediate_size", "num_attention_heads"):
            assert kinds[0][tower][key] == kinds[1][tower][key]


def test_a_clip_that_was_trained_with_the_sigmoid_keeps_its_bias_where_there_is_a_place(tmp_path: Path) -> None:
    towers = load(small_models.of_open_clip(tmp_path / "original"))
    towers.bias = torch.tensor(-7.5)
    assert save_as(towers, tmp_path / "there", "open_clip").notes == []
    again = load(f"open_clip:local-dir:{tmp_path / 'there'}")
    assert again.bias is not None
    assert again.bias.item() == -7.5
    assert any("bias of the logits" in note for note in save_as(towers, tmp_path / "hf", "hf").notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
def test_full_sizes(name: str, tmp_path: Path) -> None:
    config = open_clip.get_model_config(name)
    original = load(of_open_clip(tmp_path / "original", config))
    there = save_as(original, tmp_path / "there", "hf")
    back = save_as(load(f"hf:{tmp_path / 'there'}"), tmp_path / "back", "open_clip")
    sentence = save_as(original, tmp_path / "sentence", "sentence-transformers")
    graphs = save_as(original, tmp_path / "graphs", "onnx")
    assert max(max(r.image, r.text) for r in (there, back, sentence, graphs)) < CLOSE
    first, last = weights(tmp_path / "original"), weights(tmp_path / "back")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
