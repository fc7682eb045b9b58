"""Weights between the first and the trained ones, of towers as fine-tuning has them: adapters and averages included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from xmodal.encoders.average import Average
from xmodal.encoders.interpolate import between, state_of
from xmodal.encoders.lora import add_lora, has_lora
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.finetune import Towers

TEXTS = ["a dog", "a cat and a dog"]


def small() -> TwoTower:
    torch.manual_seed(0)
    return small_towers(PiecesTokenizer.train(["a dog and a cat"] * 20, 64), d=32)


@torch.no_grad()
def moved(module: nn.Module) -> None:
    for p in module.parameters():
        if p.requires_grad:
            p.add_(torch.randn_like(p) * 0.05)


def test_a_state_is_a_copy() -> None:
    module = nn.Linear(3, 4)
    state = state_of(module)
    before = {name: t.clone() for name, t in state.items()}
    moved(module)
    assert all(torch.equal(t, before[name]) and not t.requires_grad for name, t in state.items())


def test_what_is_no_number_comes_from_the_trained() -> None:
    module = nn.BatchNorm1d(2)
    first = state_of(module)
    module(torch.randn(5, 2))
    for alpha in (0.0, 0.5, 1.0):
        assert between(first, module, alpha).num_batches_tracked == 1  # which cannot be a half


def test_another_shape_or_name_is_another_model() -> None:
    first = state_of(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="not of the same model.*bias"):
        between(first, nn.Linear(3, 4, bias=False), 0.5)
    with pytest.raises((ValueError, RuntimeError)):
        between(first, nn.Linear(3, 5), 0.5)


@pytest.mark.parametrize("averaged", [False, True])
def test_finished_towers_are_plain_and_on_their_way(averaged: bool) -> None:
    module = small()
    first, texts = state_of(module), module.encode_text(TEXTS)
    add_lora(module, 4, only=("text",))
    trained: Any = Average(module, 0.5) if averaged else module
    moved(module)
    if averaged:
        trained.follow(module, 0)
        trained = trained.module
    now = {name: t.clone() for name, t in trained.state_dict().items()}
    towers = Towers(module, first, 0.0)
    start = towers.finished(trained)
    assert not has_lora(start)
    assert all(torch.equal(t, first[name]) for name, t in start.state_dict().items())
    assert torch.equal(start.encode_text(TEXTS), texts)

    ends = towers.scan(lambda: towers.finished(trained), lambda model: model.encode_text(TEXTS))
    assert list(ends) == [tenth / 10 for tenth in range(11)]
    assert towers.alpha == 0.0
    assert torch.equal(ends[0.0], texts)
    plain = Towers(module).finished(trained)
    torch.testing.assert_close(ends[1.0], trained.encode_text(TEXTS), rtol=0, atol=1e-5)
    assert (ends[1.0] - texts).abs().max() > 1e-2
    towers.alpha = 0.3
    for name, t in towers.finished(trained).state_dict().items():
        torch.testing.assert_close(t, 0.7 * first[name] + 0.3 * plain.state_dict()[name], rtol=0, atol=1e-6)
    assert has_lora(trained)
    assert all(torch.equal(t, now[name]) for name, t in trained.state_dict().items())


def test_without_first_weights_nothing_is_scanned() -> None:
    module = small()
    assert Towers(module).finished(module) is module
    assert Towers(module).scan(lambda: pytest.fail("exported"), lambda model: 0) == {}
