"""The teacher follows by the formula, buffers included, by a momentum from BYOL's schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xmodal.encoders.teacher import Teacher
from xmodal.schedule import cosine_to_one


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_weights_and_buffers_follow_by_the_formula() -> None:
    module = student()
    teacher = Teacher(module)
    expected = {name: t.clone() for name, t in module.state_dict().items()}
    momentum = cosine_to_one(0.9, 20)
    for step in range(20):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        module(torch.randn(5, 3))
        teacher.follow(module, momentum(step))
        for name, now in module.state_dict().items():
            share = momentum(step)
            expected[name] = share * expected[name] + (1 - share) * now if now.is_floating_point() else now.clone()
    for name, t in teacher.module.state_dict().items():
        torch.testing.assert_close(t, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(teacher.module.state_dict()["1.running_mean"], torch.zeros(4))


def test_it_gives_no_gradient_and_takes_the_batchs_statistics_in_training() -> None:
    teacher, x = Teacher(student()), torch.randn(6, 3, requires_grad=True)
    assert not any(p.requires_grad for p in teacher.parameters())
    y = teacher.train()(x)
    assert not y.requires_grad
    torch.testing.assert_close(y.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    assert "module.1.running_var" in teacher.state_dict()


def test_the_momentum_is_byols() -> None:
    momentum = cosine_to_one(0.99, 1000)
    assert momentum(0) == pytest.approx(0.99, rel=1e-15)
    assert momentum(500) == pytest.approx(0.995, rel=1e-12)
    assert momentum(250) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 4) + 1) / 2, rel=1e-12)
    assert momentum(1000) == momentum(2000) == 1
