"""A view that is read straight from a file is the view of the decoded picture, however the file is read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import ExifTags, Image, JpegImagePlugin
from torch import Tensor

from xmodal.benchmarks.decode import photograph, psnr
from xmodal.data import cut as reading
from xmodal.data.augment import augmentation
from xmodal.data.batches import Batches
from xmodal.data.cut import Box, Cut, cut, cut_file, cuts_of_file, on_grid
from xmodal.data.decode import decode
from xmodal.data.mixture import Mixture
from xmodal.data.stand_ins import Skipped
from xmodal.data.table import read_table
from xmodal.encoders.preparation import Preparation
from xmodal.errors import BadSample

SIZE = (48, 64)


def middle(width: int, height: int) -> Box:
    """No whole pixels, and not in the middle."""
    return 0.03 * width, 0.11 * height, 0.93 * width, 0.98 * height


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.fixture(params=["Pillow", "simplejpeg"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(reading, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scales at which JPEGs were read."""
    found: list[int] = []
    choose = reading._scale

    def noted(*given: Any) -> int:
        found.append(choose(*given))
        return found[-1]

    monkeypatch.setattr(reading, "_scale", noted)
    return found


SHARP, SOFT = photograph(400, 300, 1.0, 0), photograph(400, 300, 2.0, 1)


def as_torchvision(picture: Image.Image, rectangle: Callable[[int, int], Box], size: tuple[int, int]) -> Tensor:
    """What torchvision makes of the same rectangle of a decoded picture."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_to_tensor, resized_crop

    left, top, right, bottom = on_grid(rectangle(*picture.size), picture.size, size)
    where = (top, left, bottom - top, right - left)
    return pil_to_tensor(resized_crop(picture, *where, list(size), InterpolationMode.BICUBIC))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(48, 64), (300, 200), (7, 5)])
@pytest.mark.parametrize("picture", [SHARP, SHARP.convert("L"), SHARP.resize((20, 30)), SHARP.resize((400, 1))])
def test_a_view_is_that_of_torchvision(picture: Image.Image, size: tuple[int, int]) -> None:
    expected = as_torchvision(picture.convert("RGB"), middle, size)
    assert psnr(cut(picture, middle, size, "bicubic"), expected) > 60
    assert torch.equal(cut(np.asarray(picture), middle, size, "bicubic"), cut(picture, middle, size, "bicubic"))
    read = cut_file(encoded(picture, "PNG"), middle, size, "bicubic")
    assert torch.equal(read, cut(picture, middle, size, "bicubic"))
    assert (read.shape, read.dtype) == ((3, *size), torch.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_each_orientation_in_each_format(form: str, orientation: int, reader: str) -> None:
    file = encoded(SHARP, form, exif=turned(orientation))
    whole = decode(file)

    def rectangle(width: int, height: int) -> Box:
        return 12, 24, width - 40, height - 4

    for size in (SIZE, (20, 30)):
        expected = as_torchvision(whole, rectangle, size)
        for exact in (True, False):
            assert psnr(cut_file(file, rectangle, size, "bicubic", exact), expected) > 50


def jpegs() -> dict[str, bytes]:
    """Soft enough to be read at 1/2 for views of SIZE, but for the last ones."""
    return {
        "4:2:0": encoded(SOFT, "JPEG", quality=90),
        "4:4:4": encoded(SOFT, "JPEG", quality=90, subsampling=0),
        "grey": encoded(SOFT.convert("L"), "JPEG", quality=90),
        "progressive": encoded(SOFT, "JPEG", quality=90, progressive=True),
        "CMYK": encoded(SOFT.convert("CMYK"), "JPEG", quality=90),
        "odd sides": encoded(SOFT.crop((0, 0, 397, 299)), "JPEG", quality=90),
        "turned": encoded(SOFT.crop((0, 0, 397, 299)), "JPEG", quality=90, exif=turned(3)),
        "4:2:2": encoded(SOFT, "JPEG", quality=90, subsampling=1),
        "sharp": encoded(SHARP, "JPEG", quality=90),
    }


@pytest.mark.parametrize("name", jpegs())
def test_a_jpeg_is_read_no_finer_than_its_view_needs(name: str, reader: str, scales: list[int]) -> None:
    file = jpegs()[name]
    fast = cut_file(file, middle, SIZE, "bicubic")
    assert scales == [1 if name in ("CMYK", "4:2:2", "sharp") else 2]
    assert psnr(fast, cut_file(file, middle, SIZE, "bicubic", exact=True)) > 50
    if name != "turned":  # there the grid begins at another edge
        assert psnr(fast, as_torchvision(decode(file), middle, SIZE)) > 50


def test_a_large_jpeg_is_read_at_a_quarter(reader: str, scales: list[int]) -> None:
    file = encoded(photograph(1201, 901, 1.8, 0), "JPEG", quality=90)
    fast = cut_file(file, middle, (40, 50), "bicubic")
    assert scales == [4]
    assert psnr(fast, cut_file(file, middle, (40, 50), "bicubic", exact=True)) > 50


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_views_of_one_file_are_those_that_each_would_be(form: str, orientation: int, reader: str) -> None:
    file = encoded(SOFT, form, exif=turned(orientation))
    cuts = [
        Cut(middle, (40, 50), "bicubic"),
        Cut(lambda w, h: (0, 0, w, h), (40, 50), "bilinear"),
        Cut(lambda w, h: (0.1 * w, 0.1 * h, 0.9 * w, 0.9 * h), (36, 40), "bicubic"),
    ]
    for exact in (False, True):
        together = cuts_of_file(file, cuts, exact)
        assert [view.shape for view in together] == [(3, *cut.size) for cut in cuts]
        assert all(torch.equal(view, cut_file(file, *cut, exact)) for view, cut in zip(together, cuts, strict=True))


def test_the_view_that_needs_most_says_how_finely_all_are_read(reader: str, scales: list[int]) -> None:
    file = encoded(SOFT, "JPEG", quality=90)
    coarse, fine = Cut(middle, SIZE, "bicubic"), Cut(lambda w, h: (8, 4, w // 2, h // 2), SIZE, "bicubic")
    together = cuts_of_file(file, [coarse, fine])
    assert scales == [2, 1]
    assert torch.equal(together[1], cut_file(file, *fine))
    assert psnr(together[0], cut_file(file, *coarse, exact=True)) > 55
    assert not torch.equal(together[0], cut_file(file, *coarse))


def test_readers_agree(monkeypatch: pytest.MonkeyPatch, scales: list[int]) -> None:
    pytest.importorskip("simplejpeg")
    sizes = (SIZE, (150, 200))  # at 1/2, and whole with colours interpolated
    for name, file in jpegs().items():
        both = [cut_file(file, middle, size, "bicubic") for size in sizes]
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_simplejpeg", lambda: None)
            for size, other in zip(sizes, both, strict=True):
                assert psnr(cut_file(file, middle, size, "bicubic"), other) > 50, name
        assert {1, 2} >= set(scales)


def test_exact_reads_every_pixel_by_pillow(scales: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_simplejpeg", lambda: pytest.fail("another reader"))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("a coarser picture"))
    file = encoded(SOFT, "JPEG", quality=90)
    read = cut_file(file, middle, SIZE, "bicubic", exact=True)
    assert scales == []
    assert torch.equal(read, cut(decode(file), middle, SIZE, "bicubic"))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_half_a_file_is_truncated_here_too(form: str, reader: str) -> None:
    """simplejpeg says no, and Pillow says why."""
    file = encoded(SOFT, form)
    for exact in (True, False):
        with pytest.raises(BadSample) as caught:
            cut_file(file[: len(file) // 2], middle, SIZE, "bicubic", exact)
        assert caught.value.reason == "truncated"


def test_a_jpeg_of_another_colour_space(reader: str) -> None:
    """Adobe's RGB: no YCbCr inside."""
    file = encoded(SOFT, "JPEG", keep_rgb=True, quality=95)
    view = cut_file(file, middle, SIZE, "bicubic")
    assert psnr(view, as_torchvision(decode(file), middle, SIZE)) > 50


@given(
    sides=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    ends=st.tuples(*[st.floats(0, 1)] * 4),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
)
def test_a_box_on_the_grid(sides: tuple[int, int], ends: tuple[float, ...], size: tuple[int, int]) -> None:
    width, height = sides
    (left, right), (top, bottom) = sorted(ends[:2]), sorted(ends[2:])
    box = left * width, top * height, right * width, bottom * height
    assume(min(box[2] - box[0], box[3] - box[1]) >= 1)
    found = on_grid(box, sides, size)
    assert 0 <= found[0] < found[2] <= width
    assert 0 <= found[1] < found[3] <= height
    shrinks = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
    step = 4 if shrinks >= 10 else 2 if shrinks >= 4 else 1
    assert all(edge % step == 0 for edge in found)
    assert all(abs(edge - exact) <= step for edge, exact in zip(found, box, strict=True))


@pytest.mark.parametrize("parts", [1, 2])
def test_batches_have_the_same_rows_and_views_however_files_are_read(tmp_path: Path, parts: int) -> None:
    """Of one table, and of a mixture, whose rows are of two at once; a file that is bad, too."""
    tables = []
    for part in range(parts):
        folder = tmp_path / str(part)
        folder.mkdir()
        for i in range(8):
            SOFT.rotate(40 * i).save(folder / f"{i}.jpg", quality=90)
        half = (folder / "3.jpg").read_bytes()
        (folder / "3.jpg").write_bytes(half[: len(half) // 2])
        (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{i}.jpg,{i}\n" for i in range(8)))
        tables.append((str(folder), read_table(folder / "pairs.csv")))
    source: Any = tables[0][1] if parts == 1 else Mixture("both", tables)

    def batch(exact: bool) -> tuple[dict[str, Tensor], list[Skipped]]:
        view = augmentation("clip", Preparation(*SIZE), exact)
        return Batches(
            source,
            batch=8 * parts,
            part=(0, 8 * parts),
            seed=0,
            prepare_images=view,
            tokenize=lambda t: torch.zeros(len(t)),
        )[0]

    (fast, skipped), (exact, expected) = batch(False), batch(True)
    assert skipped == expected
    assert {one.reason for one in skipped} == {"truncated"}
    assert torch.equal(fast["row"], exact["row"])
    assert not torch.equal(fast["image"], exact["image"])
    assert all(psnr(a, b) > 50 for a, b in zip(fast["image"], exact["image"], strict=True))
