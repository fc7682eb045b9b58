"""Changes of colour: what torchvision's functions give for each picture by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from xmodal.data import colours


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth ones, noise, and one that is grey, black and white in places."""
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(6, 3, 24, 40, generator=g)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 4, 5, generator=g), (24, 40), mode="bilinear")
    plain = torch.full((1, 3, 24, 40), 0.3)
    plain[..., :10], plain[..., 10:20] = 0, 1
    return (torch.cat([noise, smooth, plain]) * 255).round() / 255


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_is_torchvisions(name: str, pictures: Tensor) -> None:
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    amounts = torch.linspace(low, high, len(pictures))
    found = getattr(colours, name)(pictures, amounts)
    theirs = getattr(F, f"adjust_{name}")
    for one, picture, amount in zip(found, pictures, amounts.tolist(), strict=True):
        assert (one - theirs(picture, amount)).abs().max() < 2e-6
        # Of bytes torchvision rounds down after each change, of contrast its mean grey, too.
        of_bytes = theirs((picture * 255).round().byte(), amount)
        assert ((one * 255).round() - of_bytes).abs().max() <= 2


def test_nothing_is_changed_by_no_change(pictures: Tensor) -> None:
    one = torch.ones(len(pictures))
    for change in (colours.brightness, colours.contrast, colours.saturation):
        assert torch.equal(change(pictures, one), pictures)
    assert (colours.hue(pictures, 0 * one) - pictures).abs().max() < 1e-6


def test_grey_and_solarise_are_torchvisions(pictures: Tensor) -> None:
    assert torch.allclose(colours.grey(pictures), F.rgb_to_grayscale(pictures), atol=1e-7)
    assert torch.equal(colours.solarise(pictures), F.solarize(pictures, 0.5))
    by_bytes = F.solarize((pictures * 255).byte(), 128)  # as Pillow's solarize does by default
    assert torch.equal((colours.solarise((pictures * 255).byte() / 255) * 255).round().byte(), by_bytes)


@pytest.mark.parametrize("side", [24, 224])
def test_blur_is_torchvisions(side: int) -> None:
    x = torch.rand(3, 3, side, side + 20, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.1, 0.9, 2.0])
    size = [2 * max(1, length // 20) + 1 for length in (side, side + 20)]
    assert side != 224 or size == [23, 25]
    for one, picture, s in zip(colours.blur(x, sigma), x, sigma.tolist(), strict=True):
        assert (one - F.gaussian_blur(picture, [size[1], size[0]], [s, s])).abs().max() < 2e-6


def test_jitter_changes_in_each_pictures_own_order(pictures: Tensor) -> None:
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    n = len(colours.ORDERS)
    x = pictures[torch.arange(n) % len(pictures)]
    amounts = torch.rand(n, 4, generator=torch.Generator().manual_seed(2)) + torch.tensor([0.5, 0.5, 0.5, -0.5])
    found = colours.jitter(x, amounts, torch.arange(n))
    for one, picture, its_own, order in zip(found, x, amounts.tolist(), colours.ORDERS, strict=True):
        for number in order:
            picture = changes[number](picture, its_own[number])
        assert (one - picture).abs().max() < 1e-5
    assert len({one.numpy().tobytes() for one in found[:: len(pictures)]}) == len(found[:: len(pictures)])


def test_a_picture_is_changed_alike_in_any_company(pictures: Tensor) -> None:
    n = len(pictures)
    amounts, order = torch.rand(n, 4) * 0.5 + torch.tensor([0.7, 0.7, 0.7, -0.2]), torch.arange(n)
    sigma = torch.linspace(0.1, 2, n)
    together = colours.blur(colours.jitter(pictures, amounts, order), sigma)
    usual = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            each = [colours.blur(colours.jitter(pictures[[i]], amounts[[i]], order[[i]]), sigma[[i]]) for i in range(n)]
        finally:
            torch.set_num_threads(usual)
        assert torch.equal((together * 255).round(), (torch.cat(each) * 255).round())
