"""Which parameters are trained and how fast: by how deep they lie in their tower."""

from __future__ import annotations

from pathlib import Path

import hubs
import open_clip
import pytest
import timm
import torch
from torch import nn

from xmodal.encoders.pair import paired_towers
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.trainable import is_locked, lock, parameter_groups
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError


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


@pytest.mark.parametrize("unlocked", [None, 0, 1])
def test_a_locked_tower_drops_nothing(unlocked: int | None, tmp_path: Path) -> None:
    towers = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20)
    backbone: nn.Module = towers.text.backbone  # pyright: ignore[reportAssignmentType]
    every = trained(backbone)
    if unlocked is not None:
        lock(towers, "text", unlocked)
    last = {n for n in every if n.startswith(("model.encoder.layer.1.", "model.pooler."))}
    assert trained(backbone) == {None: every, 0: set(), 1: last}[unlocked]
    towers.train()
    awake = {n for n, m in backbone.named_modules() if isinstance(m, nn.Dropout) and m.p > 0 and m.training}
    everywhere = {n for n, m in backbone.named_modules() if isinstance(m, nn.Dropout) and m.p > 0}
    assert len(everywhere) > 4
    assert awake == {None: everywhere, 0: set(), 1: {n for n in everywhere if ".layer.1." in n}}[unlocked]
    texts = towers.tokenizer(["a dog", "two cats"])
    first, again = towers.features(text=texts), towers.features(text=texts)
    assert torch.equal(first, again) is (unlocked == 0)
    towers.eval()
    assert torch.equal(first, towers.features(text=texts)) is (unlocked == 0)


def test_rates_below_a_head_fall_from_their_own(tmp_path: Path) -> None:
    pair = paired_towers(f"hf:{hubs.vit(tmp_path / 'vit')}", f"hf:{hubs.bert(tmp_path / 'bert')}", d=20)
    lock(pair, "text", 1)
    groups = parameter_groups(pair, pair, layer_decay=0.5, backbone_lr=0.1)
    rates = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(rates) == sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in pair.parameters())
    decays = {id(p): g.get("weight_decay") for g in groups for p in g["params"]}
    assert all(decays[id(p)] == (0.0 if p.ndim < 2 else None) for p in pair.parameters() if p.requires_grad)
    for name, rate in {
        "image.backbone.model.embeddings.cls_token": 0.1 / 8,
        "image.backbone.model.layers.0.mlp.fc1.weight": 0.1 / 4,
        "image.backbone.model.layers.1.mlp.fc1.weight": 0.1 / 2,
        "image.backbone.model.layernorm.bias": 0.1,
        "text.backbone.model.encoder.layer.1.output.dense.weight": 0.1 / 2,
        "text.backbone.model.pooler.dense.weight": 0.1,
        "text.head.1.weight": 1.0,
    }.items():
        assert rates[id(pair.get_parameter(name))] == pytest.approx(rate), name
    assert id(pair.get_parameter("text.backbone.model.encoder.layer.0.output.dense.weight")) not in rates


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
