"""Strided convolutions on maps that come down to a single place."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from xmodal.encoders.image import open_image_encoder
from xmodal.encoders.small_resnet import Block
from xmodal.encoders.strided import Strided, with_strided


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_gradients_in_bfloat16_are_written_where_a_map_is_one_place_wide(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution, rows = with_strided(Block(64, 128, 2).first), torch.randn(256, 64, *sides).bfloat16()
    assert isinstance(convolution, Strided)
    exact = convolution.weight.detach().bfloat16().float().requires_grad_()
    expected = F.conv2d(rows.float(), exact, None, 2, 1)
    slope = torch.randn_like(expected).bfloat16()
    expected.backward(slope.float())
    assert exact.grad is not None
    for _ in range(3):
        for value in (torch.nan, 1e30):  # what memory that is used again holds
            torch.full(convolution.weight.shape, value)
        convolution.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            found = convolution(rows)
        assert torch.allclose(found.float(), expected, atol=0.05)
        found.backward(slope)
        assert convolution.weight.grad is not None
        off = (convolution.weight.grad - exact.grad).abs().max() / exact.grad.abs().max()
        assert off < 0.02


def test_a_tower_of_timm_has_them_and_computes_the_same() -> None:
    plain = timm.create_model("resnet10t", num_classes=0).eval()
    strided = with_strided(timm.create_model("resnet10t", num_classes=0)).eval()
    names = [name for name, module in strided.named_modules() if isinstance(module, Strided)]
    assert {"conv1.0", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"} <= set(names)
    strided.load_state_dict(plain.state_dict())
    for side in (16, 64):
        rows = torch.randn(2, 3, side, side)
        assert torch.allclose(strided(rows), plain(rows), atol=1e-6)
    for spec, name in (("timm:resnet10t/random", "layer4.0.conv1"), ("small", "blocks.1.first"), ("small", "stem")):
        assert isinstance(open_image_encoder(spec).get_submodule(f"image.{name}"), Strided)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "groups", "bias"),
    [
        (3, 1, 1, 1, False),
        (3, 1, 1, 4, True),
        (3, 2, 2, 1, True),
        (7, 3, 1, 1, False),
        (3, 0, 1, 1, True),
        (5, 1, 1, 1, False),
    ],
)
def test_any_strided_convolution_gives_what_torch_gives(
    kernel: int, padding: int, dilation: int, groups: int, bias: bool
) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(8, 8, kernel, (2, 3), padding, dilation, groups, bias)
    ours = with_strided(theirs)
    assert isinstance(ours, Strided)
    assert ours.weight is theirs.weight
    assert ours.bias is theirs.bias
    for sides in ((9, 9), (9, 1), (1, 1)):
        if min(sides) + 2 * padding > dilation * (kernel - 1):
            rows = torch.randn(2, 8, *sides)
            assert torch.allclose(ours(rows), theirs(rows), atol=1e-6)


def test_what_needs_no_care_stays_as_it_is() -> None:
    for module in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, 2), nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect")):
        assert with_strided(module) is module
