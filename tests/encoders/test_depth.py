"""How deep each parameter lies: name by name, for a model of each kind."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import hubs
import open_clip
import pytest
import timm
import torch
from torch import nn

from xmodal.encoders.depth import depths
from xmodal.encoders.lora import add_lora
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.small import SmallImageTower, small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower


def places(tower: nn.Module) -> list[str]:
    """For each depth from 0 to n + 1 the modules that own its parameters, in order; a layer is one of them."""
    found, layers = depths(tower)
    assert list(found) == [name for name, _ in tower.named_parameters()]
    told: list[list[str]] = [[] for _ in range(layers + 2)]
    for name, depth in found.items():
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
        # A parameter of the tower itself, or a module, or the numbered part of a list.
        told[depth].append(name if len(parts) == 1 else ".".join(parts[: number + 1]))
    return [" ".join(dict.fromkeys(names)) for names in told]


VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 60, "width": 64, "heads": 2, "layers": 2}


@pytest.mark.parametrize("layers", [1, 3])
def test_open_clip(layers: int) -> None:
    model = open_clip.CustomTextCLIP(24, {**VISION, "layers": layers}, {**TEXT, "layers": layers})  # type: ignore[arg-type]
    blocks = [f"transformer.resblocks.{n}" for n in range(layers)]
    assert places(model.visual) == ["class_embedding positional_embedding conv1 ln_pre", *blocks, "proj ln_post"]
    assert places(model.text) == ["positional_embedding token_embedding", *blocks, "text_projection ln_final"]


def test_the_resnet_of_open_clip() -> None:
    model = open_clip.CLIP(24, {"image_size": 64, "layers": [2, 1, 1, 1], "width": 8}, TEXT)  # type: ignore[arg-type]
    stem = "conv1 bn1 conv2 bn2 conv3 bn3"
    blocks = ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    pool = "attnpool attnpool.k_proj attnpool.q_proj attnpool.v_proj attnpool.c_proj"
    assert places(model.visual) == [stem, *blocks, pool]


OF_TIMM = {
    "vit_tiny_patch16_224": ["cls_token pos_embed patch_embed.proj", *(f"blocks.{n}" for n in range(12)), "norm"],
    "resnet18": ["conv1 bn1", *(f"layer{stage}.{n}" for stage in (1, 2, 3, 4) for n in (0, 1)), ""],
    # A stem of several convolutions isn't several layers, nor is the way around a block one of its own.
    "resnet10t": ["conv1.0 conv1.1 conv1.3 conv1.4 conv1.6 bn1", *(f"layer{stage}.0" for stage in (1, 2, 3, 4)), ""],
    "convnext_atto": ["stem.0 stem.1", *(f"stages.{n}" for n in range(4)), "head.norm"],
    "mobilenetv3_small_050": ["conv_stem bn1", *(f"blocks.{n}" for n in range(6)), "conv_head"],
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_timm(name: str) -> None:
    with torch.device("meta"):
        tower = timm.create_model(name, pretrained=False, num_classes=0)
    assert places(tower) == OF_TIMM[name]


def test_transformers(tmp_path: Path) -> None:
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20)
    vit, bert = towers.image.backbone.model, towers.text.backbone.model  # pyright: ignore
    before = "embeddings embeddings.patch_embeddings.projection"
    assert places(vit)[:3] == [before, "layers.0", "layers.1"]
    assert "layernorm" in places(vit)[3].split()
    tables = [f"embeddings.{name}" for name in ("word", "position", "token_type")]
    assert places(bert) == [
        " ".join([*(f"{table}_embeddings" for table in tables), "embeddings.LayerNorm"]),
        *("encoder.layer.0", "encoder.layer.1"),
        "pooler.dense",
    ]


def test_positions_that_every_layer_uses_come_before_them() -> None:
    import transformers

    tower = transformers.MPNetModel(transformers.MPNetConfig(**hubs.TEXT, vocab_size=60))
    found, layers = depths(tower)
    assert layers == 2
    assert found["encoder.relative_attention_bias.weight"] == 0
    assert found["encoder.layer.1.output.dense.weight"] == 2
    assert found["pooler.dense.weight"] == 3


def test_what_sentence_transformers_puts_on_top_comes_after(tmp_path: Path) -> None:
    spec = f"st:{hubs.sentence_transformer(tmp_path / 'st', dense=True)}"
    tower: Any = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", spec, d=20).text
    for several in (1, 2):
        found, layers = depths(tower.backbone)
        assert layers == 2
        dense = {depth for name, depth in found.items() if name.startswith("dense.")}
        assert dense == {3}, several
        tower.backbone.dense.append(deepcopy(tower.backbone.dense[0]))


def test_small() -> None:
    blocks = [f"layers.{n}" for n in range(5)]
    assert places(SmallImageTower(32)) == [
        *("layers.1", "layers.2 layers.4", "layers.5", "layers.6", "layers.7", "layers.8 projection")
    ]
    text = small_towers(PiecesTokenizer.train(["a dog and a cat"] * 20, 64)).text
    assert places(text) == ["places pieces", *blocks[:2], "norm projection"]


def test_without_any_block_bare_layers_count() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.norm = nn.LayerNorm(4)

    assert places(Plain()) == ["", "layers.0", "layers.2", "layers.4", "norm"]
    assert depths(nn.Linear(3, 3))[1] == 0


def test_adapters_change_no_depth() -> None:
    with torch.device("meta"):
        image = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    tokenizer = PiecesTokenizer.train(["a dog and a cat"] * 20, 64)
    text = open_clip.transformer.TextTransformer(12, 60, 64, 2, 2, output_dim=24)
    towers = TwoTower(image, text, preparation=Preparation(224, 224), tokenizer=tokenizer, description={})
    before = {which: depths(getattr(towers, which)) for which in ("image", "text")}
    add_lora(towers, 2, where="all")
    for which, (found, layers) in before.items():
        now, layers_now = depths(getattr(towers, which))
        assert layers_now == layers
        for name, depth in now.items():
            if "lora_" not in name:
                plain = name.replace(".base_layer", "").replace("in_proj.weight", "in_proj_weight")
                assert depth == found[plain.replace("in_proj.bias", "in_proj_bias")], name
            else:
                assert depth == int(name.split("locks.")[1].split(".")[0]) + 1, name
