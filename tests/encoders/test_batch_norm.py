"""BatchNorm against torch's on one process; on several in tests/two_processes.py and, in parts, here."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from xmodal import distributed
from xmodal.encoders.batch_norm import BatchNorm, over_all_processes
from xmodal.errors import InputError
from xmodal.objectives.standardise import standardise


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=g, dtype=torch.float64) + 1).to(dtype).requires_grad_()


@pytest.fixture
def _as_if_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of several processes, of which this one has all rows and the other none."""
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)

    def all_gather(x: Tensor, spread: Any) -> Tensor:
        assert spread.sizes == (1, 1)
        return torch.cat([x, torch.zeros_like(x)])

    monkeypatch.setattr(distributed, "all_gather", all_gather)


def compare(theirs: nn.Module, ours: nn.Module, *shape: int) -> None:
    theirs.double()
    ours.double().load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        for k, p in enumerate(module.parameters()):
            p.data += torch.arange(len(p)) / (k + 2)
    for step in range(4):
        if step == 3:
            theirs.eval(), ours.eval()
        found = []
        for module in (theirs, ours):
            x = rows(*shape, seed=step)
            y = module(x)
            y.backward(rows(*shape, seed=step + 10).detach())
            found.append([y, x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-12)


SETTINGS: list[dict[str, Any]] = [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False, "eps": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_on_one_process_it_is_torchs(settings: dict[str, Any]) -> None:
    compare(nn.BatchNorm1d(5, **settings), BatchNorm(5, **settings), 7, 5)


@pytest.mark.usefixtures("_as_if_several")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_on_several_it_is_torchs_for_all_their_rows(settings: dict[str, Any]) -> None:
    compare(nn.BatchNorm1d(5, **settings), BatchNorm(5, **settings), 7, 5)
    compare(nn.BatchNorm2d(3, **settings), BatchNorm(3, **settings), 4, 3, 2, 5)


@pytest.mark.usefixtures("_as_if_several")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32_and_comes_back(dtype: torch.dtype) -> None:
    layer = BatchNorm(4)
    x = (rows(300, 4, dtype=torch.float32).detach() + 200).to(dtype).requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype
    want = nn.BatchNorm1d(4)(x.detach().float())
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("_as_if_several")
def test_columns_far_from_zero_keep_their_variance() -> None:
    x = rows(200, 3, dtype=torch.float32).detach() + 10_000
    want = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    torch.testing.assert_close(standardise(x).double(), want, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("_as_if_several")
def test_one_value_of_a_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        BatchNorm(3)(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"needs \(b, 3, …\), not \(4, 2\)"):
        BatchNorm(3)(torch.ones(4, 2))
    assert BatchNorm(3)(torch.ones(1, 3, 2)).shape == (1, 3, 2)


def test_a_backbones_batch_norms_are_replaced_with_all_they_have() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0)
    names, state = dict(backbone.named_parameters()), backbone.state_dict()
    x = torch.randn(2, 3, 32, 32)
    want = backbone.eval()(x)
    ours = over_all_processes(backbone)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.modules())
    assert sum(isinstance(m, BatchNorm) for m in ours.modules()) == 20
    assert all(p is names[name] for name, p in ours.named_parameters())
    assert all(torch.equal(t, state[name]) for name, t in ours.state_dict().items())
    assert not any(m.training for m in ours.modules())
    assert torch.equal(ours(x), want)


def test_other_batch_norms_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="BatchNormAct2d"):
        over_all_processes(nn.Sequential(timm.layers.BatchNormAct2d(3)))
