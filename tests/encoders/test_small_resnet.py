"""`small` for images alone: maps that come down to a single place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xmodal.encoders.small_resnet import Block, Strided


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_gradients_in_bfloat16_are_written_where_a_map_is_one_place_wide(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = Block(64, 128, 2)
    assert isinstance(block.first, Strided)
    convolution, rows = block.first, torch.randn(256, 64, *sides).bfloat16()
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
