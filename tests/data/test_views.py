"""Views: what each name does to a picture, from the same numbers always the same."""

from __future__ import annotations

import inspect
import io
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from xmodal.benchmarks.decode import psnr
from xmodal.data.augment import AUGMENTATIONS
from xmodal.data.decode import decode, decode_each
from xmodal.data.order import draws
from xmodal.data.views import Distort, Views, ViewsName, views
from xmodal.encoders.preparation import Preparation

BIG, LITTLE = Preparation(224, 224), Preparation(32, 32)
NAMES = get_args(ViewsName)


def photograph(width: int = 120, height: int = 90, seed: int = 0) -> Image.Image:
    """Something smooth in colours."""
    few = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def made(of: Views, pictures: list[Any], epoch: int = 0) -> dict[str, Tensor]:
    return of(pictures, draws(0, epoch, np.arange(len(pictures)), of.draws))


def distort(of: Views, number: int, key: str = "views") -> Distort:
    branch = of.branches[key][number]
    assert isinstance(branch, Distort)
    return branch


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: ViewsName) -> None:
    of = views(name, replace(LITTLE, height=24))
    found = made(of, [photograph(), photograph(20, 90), np.zeros((8, 8), np.uint8)])
    shapes = {"views": (3, 2, 3, 24, 32)} | ({"crops": (3, 6, 3, 10, 14)} if name == "swav" else {})
    assert {key: tuple(value.shape) for key, value in found.items()} == shapes
    assert all(value.dtype == torch.uint8 for value in found.values())


def test_every_name_has_views_and_no_other() -> None:
    assert set(AUGMENTATIONS) < set(NAMES)
    with pytest.raises(ValueError, match="no views are called 'moco'"):
        views("moco", LITTLE)  # type: ignore[arg-type]


def test_probabilities_and_strengths_are_the_papers() -> None:
    first, second = (distort(views("simclr", BIG), i) for i in (0, 1))
    assert first == second
    assert (first.scale, first.jitter, first.blur, first.solarise) == ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.5, 0.0)
    assert (first.jittered, first.grey, first.sigma) == (0.8, 0.2, (0.1, 2.0))
    little = distort(views("simclr", LITTLE), 0)
    assert (little.jitter, little.blur) == ((0.4, 0.4, 0.4, 0.1), 0.0)
    for name in ("byol", "barlow_twins"):
        first, second = (distort(views(name, BIG), i) for i in (0, 1))
        assert first.jitter == second.jitter == (0.4, 0.4, 0.2, 0.1)
        assert [(b.blur, b.solarise) for b in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]
    moco = distort(views("moco_v2", BIG), 1)
    assert (moco.scale, moco.jitter, moco.blur) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.5)
    swav, crop = distort(views("swav", BIG), 0), distort(views("swav", BIG), 0, "crops")
    assert (swav.scale, crop.scale, crop.preparation.height) == ((0.14, 1.0), (0.05, 0.14), 96)
    assert swav.jitter == crop.jitter == (0.8, 0.8, 0.8, 0.2)


def test_lightly_has_the_same_numbers() -> None:
    """Where it follows the papers: its defaults for large pictures."""
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    from lightly.transforms.simclr_transform import SimCLRViewTransform
    from lightly.transforms.swav_transform import SwaVTransform

    for theirs, ours in {
        SimCLRViewTransform: distort(views("simclr", BIG), 0),
        BYOLView1Transform: distort(views("byol", BIG), 0),
        BYOLView2Transform: distort(views("byol", BIG), 1),
    }.items():
        told = {name: p.default for name, p in inspect.signature(theirs).parameters.items()}
        s = told["cj_strength"]
        strengths = tuple(told[f"cj_{kind}"] * s for kind in ("bright", "contrast", "sat", "hue"))
        assert strengths == pytest.approx(ours.jitter)
        assert (told["cj_prob"], told["random_gray_scale"], told["min_scale"]) == (0.8, 0.2, ours.scale[0])
        assert (told["gaussian_blur"], told.get("solarization_prob", 0.0)) == (ours.blur, ours.solarise)
        assert told["sigmas"] == (0.1, 2)
    told = {name: p.default for name, p in inspect.signature(SwaVTransform).parameters.items()}
    of = views("swav", BIG)
    assert told["crop_counts"] == tuple(len(several) for several in of.branches.values())
    assert told["crop_sizes"] == (224, distort(of, 0, "crops").preparation.height)
    assert told["crop_min_scales"] == (distort(of, 0).scale[0], distort(of, 0, "crops").scale[0])


def test_a_view_is_torchvisions_of_the_same_numbers() -> None:
    branch = Distort(LITTLE, jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5, solarise=0.5)
    n = 40
    u = draws(3, 0, np.arange(n), branch.draws)
    pictures = [photograph(seed=i) for i in range(n)]
    still = u.copy()
    still[:, [5, 11, 12, 14]] = 1  # the rectangle alone
    for view, crop, x in zip(branch(pictures, u), branch(pictures, still), u, strict=True):
        theirs = crop.float() / 255
        if x[5] < 0.8:
            low, high = np.array([0.2, 0.2, 0.2, -0.2]), np.array([1.8, 1.8, 1.8, 0.2])
            amounts = (low + x[6:10] * (high - low)).tolist()
            changes = ("brightness", "contrast", "saturation", "hue")
            from xmodal.data.colours import ORDERS

            for number in ORDERS[int(x[10] * 24)]:
                theirs = getattr(v2.functional, f"adjust_{changes[number]}")(theirs, amounts[number])
        if x[11] < 0.2:
            theirs = v2.functional.rgb_to_grayscale(theirs, 3)
        if x[12] < 0.5:
            theirs = v2.functional.gaussian_blur(theirs, [3, 3], [0.1 + 1.9 * x[13]] * 2)
        if x[14] < 0.5:
            theirs = v2.functional.solarize(theirs, 0.5)
        off = (view.float() - theirs * 255).abs()
        # A value at the threshold may fall to either side by rounding.
        assert off.max() <= 0.51 or (x[14] < 0.5 and (off > 0.51).sum() <= 3)


@pytest.mark.parametrize("name", NAMES)
def test_views_of_files_are_those_of_their_pictures(name: ViewsName) -> None:
    of = views(name, replace(LITTLE, height=24))
    pictures = [photograph(seed=i) for i in range(4)]
    u = draws(0, 0, np.arange(4), of.draws)
    decoders = of.decoders(u)
    assert (decoders is None) == (name in ("drawing", "glyphs", "none"))
    if decoders is None:
        return
    read = decode_each([encoded(picture, "PNG") for picture in pictures], decoders)
    expected, mixed = of(pictures, u), of([*read[:2], *pictures[2:]], u)
    assert all(torch.equal(of(read, u)[key], expected[key]) for key in expected)
    assert all(torch.equal(mixed[key], expected[key]) for key in expected)


def test_jpegs_are_read_as_finely_as_all_their_views_need() -> None:
    """And `exact` reads every pixel."""
    branch = Distort(LITTLE, scale=(0.6, 1.0), jitter=(0.0, 0.0, 0.0, 0.0))
    u = draws(0, 0, np.arange(6), 2 * branch.draws)
    pictures = [photograph(320, 300, seed=i) for i in range(6)]
    files = [encoded(picture, "JPEG", quality=90) for picture in pictures]

    def made(exact: bool) -> Tensor:
        of = Views({"views": [branch, branch]}, exact)
        return of(decode_each(files, of.decoders(u)), u)["views"].flatten(0, 1)

    fast, exact = made(False), made(True)
    assert torch.equal(exact, Views({"views": [branch, branch]})([decode(f) for f in files], u)["views"].flatten(0, 1))
    assert not torch.equal(fast, exact)
    assert min(psnr(a, b) for a, b in zip(fast, exact, strict=True)) > 50


@pytest.mark.parametrize("name", ["simclr", "byol", "swav", "glyphs"])
def test_a_picture_has_the_same_views_in_any_company(name: ViewsName) -> None:
    of = views(name, BIG if name == "byol" else LITTLE)
    pictures: list[Any] = [photograph(seed=i) for i in range(5)] + [np.asarray(photograph(seed=9))]
    u = draws(0, 0, np.arange(6), of.draws)
    together = of(pictures, u)
    for i in (0, 3, 5):
        alone = of([pictures[i]], u[[i]])
        assert all(torch.equal(alone[key][0], together[key][i]) for key in together)


def test_both_views_and_all_epochs_differ() -> None:
    of = views("simclr", LITTLE)
    first, second = made(of, [photograph()] * 3), made(of, [photograph()] * 3, epoch=1)
    seen = torch.cat([first["views"], second["views"]]).flatten(0, 1)
    assert len({view.numpy().tobytes() for view in seen}) == 12


def test_half_are_flipped_and_a_fifth_grey() -> None:
    of = Views({"views": [Distort(LITTLE, scale=(1.0, 1.0), jitter=(0.0, 0.0, 0.0, 0.0))]})
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16, 0] = 255  # red on the left
    found = made(of, [picture] * 2000)["views"][:, 0].float()
    left, right = found[..., :8].mean((2, 3)), found[..., -8:].mean((2, 3))
    assert (right.sum(1) > left.sum(1)).float().mean() == pytest.approx(0.5, abs=0.04)
    is_grey = (found[:, 0] == found[:, 1]).flatten(1).all(1)
    assert is_grey.float().mean() == pytest.approx(0.2, abs=0.04)
