"""Weights averaged over steps, and weights between two models: the formulas, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xmodal.encoders.average import Average
from xmodal.encoders.interpolate import between, state_of


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_the_average_follows_the_formula() -> None:
    module = model()
    average = Average(module, decay=0.9)
    expected = {name: t.clone() for name, t in module.state_dict().items()}
    for step in range(150):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        module(torch.randn(5, 3))  # moves the statistics of batches
        average.follow(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, now in module.state_dict().items():
            floating = now.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * now if floating else now.clone()
    for name, t in average.module.state_dict().items():
        torch.testing.assert_close(t, expected[name], rtol=1e-4, atol=1e-5)
    assert average.module.state_dict()["1.num_batches_tracked"] == 150


def test_the_average_is_no_part_of_training_but_of_the_checkpoint() -> None:
    average = Average(model(), decay=0.9).train()
    assert not any(m.training for m in average.module.modules())
    assert not any(p.requires_grad for p in average.parameters())
    assert "module.0.weight" in average.state_dict()
    other = Average(model(), decay=0.9)
    other.follow(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), 0)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.module.state_dict()["0.weight"], average.module.state_dict()["0.weight"])


def test_between_two_models() -> None:
    trained = model()
    first = state_of(trained)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1.0)
    trained(torch.randn(5, 3))
    now = state_of(trained)
    for alpha in (0.0, 0.25, 1.0):
        found = between(first, trained, alpha).state_dict()
        for name in ("0.weight", "0.bias", "1.running_mean"):
            torch.testing.assert_close(found[name], (1 - alpha) * first[name] + alpha * now[name])
    assert torch.equal(between(first, trained, 1.0).state_dict()["0.weight"], now["0.weight"])
    assert torch.equal(between(first, trained, 0.0).state_dict()["0.weight"], first["0.weight"])
    assert all(torch.equal(t, now[name]) for name, t in trained.state_dict().items())
    with pytest.raises(ValueError, match="not of the same model"):
        between(first, nn.Linear(3, 4), 0.5)
