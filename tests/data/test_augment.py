"""Views: the right shape, a function of the picture and its draws alone, and evaluation's pixels those of open_clip."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from xmodal.data.augment import AUGMENTATIONS, DRAWS, Crop, augmentation
from xmodal.data.decode import decode_each
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import TwoTower

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


PICTURES: dict[str, list[Any]] = {
    "grey": [noise(64, 64) for _ in range(4)],
    "grey of several sizes": [noise(64, 64), noise(50, 70), noise(9, 64)],
    "colour": [Image.fromarray(noise(40 + i, 60, 3)) for i in range(4)],
    "grey and colour": [noise(64, 64), Image.fromarray(noise(64, 64, 3)), noise(48, 64, 3), noise(20, 20)],
    "thin": [Image.fromarray(noise(1, 400, 3)), Image.fromarray(noise(400, 1, 3)), Image.fromarray(noise(1, 1, 3))],
}


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_is_of_its_picture_and_draws_alone(name: str, kind: str, size: tuple[int, int]) -> None:
    """Otherwise another number of processes would train on other pixels."""
    view, pictures = augmentation(name, Preparation(*size)), PICTURES[kind]
    draws = np.random.default_rng(1).random((len(pictures), DRAWS))
    together = view(pictures, draws)
    assert together.dtype == torch.uint8
    assert together.shape == (len(pictures), 3, *size)
    alone = [view(pictures[i : i + 1], draws[i : i + 1]) for i in range(len(pictures))]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(view(pictures[::-1], draws[::-1].copy()), together.flip(0))
    assert torch.equal(view(pictures, draws), together)
    again = pickle.loads(pickle.dumps(view))  # workers that are spawned get it so
    assert torch.equal(again(pictures, draws), together)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_other_draws_are_another_view(name: str) -> None:
    view, pictures = augmentation(name, Preparation(32, 32)), PICTURES["colour"]
    first, second = (view(pictures, np.random.default_rng(seed).random((4, DRAWS))) for seed in (0, 1))
    assert torch.equal(first, second) == (name == "none")


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_the_ends_of_the_draws(name: str, value: float) -> None:
    pictures = [p for some in PICTURES.values() for p in some]
    view = augmentation(name, Preparation(32, 32))(pictures, np.full((len(pictures), DRAWS), value))
    assert view.shape == (len(pictures), 3, 32, 32)


@pytest.mark.parametrize("kind", PICTURES)
def test_none_is_what_evaluation_sees(kind: str) -> None:
    preparation = Preparation(24, 40, resize="shortest")
    view = augmentation("none", preparation)(PICTURES[kind], np.zeros((len(PICTURES[kind]), DRAWS)))
    assert torch.equal(view, torch.stack([preparation(picture) for picture in PICTURES[kind]]))


def ramp() -> Image.Image:
    """Red tells the place from left to right, green from top to bottom."""
    places = np.arange(256, dtype=np.uint8)
    pixels = np.stack([np.tile(places, (256, 1)), np.tile(places[:, None], (1, 256)), np.zeros((256, 256), np.uint8)])
    return Image.fromarray(pixels.transpose(1, 2, 0).copy())


@pytest.mark.parametrize(("name", "low", "flips"), [("clip", 0.9, False), ("photo", 0.35, True)])
def test_what_a_crop_holds(name: str, low: float, flips: bool) -> None:
    n = 300
    views = augmentation(name, Preparation(32, 32))([ramp()] * n, np.random.default_rng(2).random((n, DRAWS)))
    red, green = views[:, 0].float().mean(1), views[:, 1].float().mean(2)  # (n, 32): along each axis
    across, down = ((side[:, -1] - side[:, 0]) / 255 * 32 / 31 for side in (red, green))
    assert (down > 0).all()  # never upside down
    assert 0.4 < (across < 0).float().mean() < 0.6 if flips else (across > 0).all()
    area = across.abs() * down
    assert low - 0.04 < area.min()
    assert area.max() < 1.04
    assert across.abs().min() < 0.99 * across.abs().max()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (1000, 10), (10, 1000)])
def test_a_long_picture_is_cropped_as_little_as_its_ratio_allows(width: int, height: int) -> None:
    crop = Crop(Preparation(32, 32), (0.9, 1.0), (3 / 4, 4 / 3), flip=False)
    boxes = [crop.rectangle(draws, width, height) for draws in np.random.default_rng(0).random((20, DRAWS))]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        largest = min(width, height * 4 / 3) * min(height, width * 4 / 3)
        assert (right - left) * (bottom - top) >= 0.999 * min(0.9 * width * height, largest)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_crop_of_a_file_is_that_of_its_picture(name: str) -> None:
    view: Any = augmentation(name, Preparation(24, 40))
    assert hasattr(view, "decoders") == (name in ("clip", "photo"))
    if not hasattr(view, "decoders"):
        return
    files = []
    for picture in PICTURES["colour"]:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        files.append(stream.getvalue())
    draws = np.random.default_rng(1).random((len(files), DRAWS))
    read = decode_each(files, view.decoders(draws))
    assert torch.equal(view(read, draws), view(PICTURES["colour"], draws))
    mixed = [read[0], *PICTURES["colour"][1:]]
    assert torch.equal(view(mixed, draws), view(PICTURES["colour"], draws))


@pytest.mark.parametrize("name", ["drawing", "glyphs"])
def test_draws_in_the_middle_change_nothing(name: str) -> None:
    """No shift by half a pixel either, of which a model would learn that training looks other than a test."""
    middle = np.full((4, DRAWS), 0.5)
    view = augmentation(name, Preparation(32, 32))(PICTURES["grey"], middle)
    plain = F.avg_pool2d(torch.from_numpy(np.stack(PICTURES["grey"])).float()[:, None], 2)
    assert (view.float() - plain).abs().max() <= 1


def test_strokes_become_thinner_and_wider() -> None:
    page = np.full((64, 64), 255, dtype=np.uint8)
    page[12:52, 30:34] = 0
    draws = np.full((3, DRAWS), 0.5)
    draws[:, 7] = [0, 0.5, 0.999]
    ink = 255.0 - augmentation("glyphs", Preparation(32, 32))([page] * 3, draws)[:, 0].float()
    thin, plain, wide = ink.sum((1, 2)).tolist()
    assert thin < 0.8 * plain
    assert wide > 1.3 * plain
    flipped = augmentation("drawing", Preparation(32, 32))([page] * 3, draws)
    assert torch.equal(flipped[0], flipped[2])  # drawing has no strokes to change


def test_paper_stays_white() -> None:
    blank = np.full((64, 64), 255, dtype=np.uint8)
    for name in ("drawing", "glyphs"):
        view = augmentation(name, Preparation(32, 32))([blank] * 20, np.random.default_rng(3).random((20, DRAWS)))
        assert (view == 255).all()


class Seen(nn.Module):
    """A tower that keeps what it is shown."""

    def forward(self, pixels: Tensor) -> Tensor:
        self.pixels = pixels
        return pixels.flatten(1)


def seen(preparation: Preparation, picture: Image.Image) -> Tensor:
    tower = Seen()
    model = TwoTower(tower, nn.Identity(), preparation=preparation, tokenizer=Any, description={})  # type: ignore
    model.encode_image([picture])
    return tower.pixels[0]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
def test_pixels_are_those_of_open_clip(size: tuple[int, int], resize: Any, interpolation: Any) -> None:
    """Equal to the last bit: a model from open_clip must have the embeddings that it has there."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    preparation = Preparation(*size, mean, std, interpolation, resize, fill=7)
    config = PreprocessCfg(size=size, mean=mean, std=std, interpolation=interpolation, resize_mode=resize, fill_color=7)
    peer = image_transform_v2(config, is_train=False)
    for shape in ((50, 70, 3), (70, 50, 3), (33, 33, 3), (10, 13, 3), (20, 200, 3), (45, 61)):
        picture = Image.fromarray(noise(*shape))
        expected = peer(picture)
        assert isinstance(expected, Tensor)
        assert torch.equal(seen(preparation, picture), expected), shape


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (224, 224)])
def test_a_thin_picture_costs_neither_the_run_nor_the_memory(resize: Any, size: tuple[int, int]) -> None:
    """By open_clip's transforms, "longest" gives it no height, and "shortest" a length of millions."""
    preparation = Preparation(*size, resize=resize)
    for width, height in ((60_000, 1), (1, 60_000), (4000, 3)):
        assert preparation(Image.new("RGB", (width, height), "red")).shape == (3, *size)


def test_no_pictures() -> None:
    assert Preparation(24, 40).stack([]).shape == (0, 3, 24, 40)
