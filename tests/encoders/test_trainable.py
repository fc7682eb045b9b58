"""Which parameters are trained and how fast: by how deep they lie in their tower."""

from __future__ import annotations

from pathlib import Path

import hubs
import open_clip
import pytest
import timm
import torch
from torch import nn

from xmodal.encoders.depth import depths
from xmodal.encoders.pair import paired_towers
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.trainable import is_locked, lock, parameter_groups
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError


def by_depth(tower: nn.Module) -> tuple[list[set[str]], int]:
    """Names of parameters at each depth, a layer's own cut off behind its number."""
    found, layers = depths(tower)
    assert set(found) == {name for name, _ in tower.named_parameters()}
    places: list[set[str]] = [set() for _ in range(layers + 2)]
    for name, depth in found.items():
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        places[depth].add(name if number is None else ".".join(parts[: number + 1]))
    return places, layers


def test_an_image_tower_of_open_clip() -> None:
    tower = open_clip.transformer.VisionTransformer(32, 16, 64, 3, 2, 4.0, output_dim=24)
    places, layers = by_depth(tower)
    assert layers == 3
    assert places[0] == {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    assert [places[n] for n in (1, 2, 3)] == [{f"transformer.resblocks.{n}"} for n in range(3)]
    assert places[4] == {"ln_post.weight", "ln_post.bias", "proj"}


def test_a_text_tower_of_open_clip() -> None:
    tower = open_clip.transformer.TextTransformer(12, 60, 64, 2, 2, output_dim=24)
    places, layers = by_depth(tower)
    assert layers == 2
    assert places[0] == {"token_embedding.weight", "positional_embedding"}
    assert places[3] == {"ln_final.weight", "ln_final.bias", "text_projection"}


def test_towers_of_timm_and_transformers(tmp_path: Path) -> None:
    places, layers = by_depth(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0))
    assert layers == 12
    assert places[0] == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert places[13] == {"norm.weight", "norm.bias"}
    places, layers = by_depth(timm.create_model("resnet10t", pretrained=False, num_classes=0))
    assert layers >= 4
    assert any(name.startswith("conv1") for name in places[0] | places[1])
    assert any("layer4" in name for name in places[layers])
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20)
    for tower in (towers.image, towers.text):
        places, layers = by_depth(tower.backbone)  # pyright: ignore[reportArgumentType]
        assert layers == 2
        assert all("embedding" in name or "embed" in name for name in places[0])
        assert all("layer" in name for name in places[1] | places[2])


def test_every_parameter_of_small_has_a_place() -> None:
    for tower in (small().image, small().text):
        found, layers = depths(tower)
        assert layers >= 2
        assert set(found.values()) <= set(range(layers + 2))
        assert len(set(found.values())) > 2


def small() -> TwoTower:
    return small_towers(PiecesTokenizer.train(["a dog and a cat"] * 20, 64), side=32)


def trained(tower: nn.Module) -> set[str]:
    return {name for name, p in tower.named_parameters() if p.requires_grad}


def test_the_last_layers_stay_open() -> None:
    towers = of_open_clip()
    every = trained(towers.image)
    lock(towers, "image")
    assert trained(towers.image) == set()
    assert is_locked(towers, "image")
    assert not is_locked(towers, "text")
    lock(towers, "image", 1)
    expected = {n for n in every if n.startswith(("transformer.resblocks.1.", "ln_post", "proj"))}
    assert trained(towers.image) == expected
    assert not is_locked(towers, "image")
    lock(towers, "image", 2)
    assert every - trained(towers.image) == {
        *("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
    }
    for wrong in (-1, 3):
        with pytest.raises(InputError, match=rf"--unlock-image {wrong}: the tower has 2 layers"):
            lock(towers, "image", wrong)


def test_what_is_locked_sleeps() -> None:
    towers = of_open_clip()
    lock(towers, "image", 1)
    towers.train()
    blocks = towers.image.transformer.resblocks  # pyright: ignore
    assert not blocks[0].training and blocks[1].training  # noqa: PT018
    assert towers.text.training


def test_statistics_of_batches_stay_even_where_layers_are_open() -> None:
    towers = of_open_clip()
    towers.image = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    lock(towers, "image", 1)
    towers.train()
    norms = [m for m in towers.image.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms if m.running_mean is not None]
    towers.image(torch.randn(4, 3, 64, 64))
    assert any(p.requires_grad for m in norms for p in m.parameters())
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True) if m.running_mean is not None)


def test_heads_are_trained_above_a_locked_tower(tmp_path: Path) -> None:
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20, head="mlp")
    lock(towers, "text")
    assert all(name.startswith("head.") for name in trained(towers.text))
    assert trained(towers.text)
    towers.train()
    assert not towers.text.backbone.training and towers.text.head.training  # noqa: PT018  # pyright: ignore


def test_rates_fall_from_layer_to_layer(tmp_path: Path) -> None:
    towers = of_open_clip()
    scale = nn.Parameter(torch.tensor(1.0))
    method = nn.Module()
    method.towers, method.scale = towers, scale  # pyright: ignore[reportArgumentType]
    groups = parameter_groups(method, towers, layer_decay=0.5)
    members = [p for group in groups for p in group["params"]]
    assert len(members) == len({id(p) for p in members}) == sum(1 for _ in method.parameters())
    told = {id(p): group for group in groups for p in group["params"]}
    image = dict(towers.image.named_parameters())
    for name, rate in {
        "conv1.weight": 0.5**3,
        "transformer.resblocks.0.mlp.c_fc.weight": 0.5**2,
        "transformer.resblocks.1.mlp.c_fc.weight": 0.5,
        "proj": 1.0,
    }.items():
        assert told[id(image[name])]["lr_scale"] == rate
        assert "weight_decay" not in told[id(image[name])]
    assert told[id(scale)] == {"params": told[id(scale)]["params"], "lr_scale": 1.0, "weight_decay": 0.0}
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim < 2)

    pair = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20)
    lock(pair, "image")
    rates = {id(p): g["lr_scale"] for g in parameter_groups(pair, pair, backbone_lr=0.1) for p in g["params"]}
    assert {rates[id(p)] for p in pair.text.backbone.parameters()} == {0.1}  # pyright: ignore
    assert {rates[id(p)] for p in pair.text.head.parameters()} == {1.0}  # pyright: ignore
    assert not any(id(p) in rates for p in pair.image.backbone.parameters())  # pyright: ignore


def of_open_clip() -> TwoTower:
    image = open_clip.transformer.VisionTransformer(32, 16, 64, 2, 2, 4.0, output_dim=24)
    text = open_clip.transformer.TextTransformer(12, 60, 64, 2, 2, output_dim=24)
    return TwoTower(image, text, preparation=Preparation(32, 32), tokenizer=small().tokenizer, description={})
