"""Decoding: every kind of picture becomes upright RGB, and everything else becomes a BadSample."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from xmodal.data.decode import decode, looks_photographic
from xmodal.errors import BadSample

WHITE = (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(side: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reason_of(found: Callable[[], object]) -> str:
    with pytest.raises(BadSample) as caught:
        found()
    assert str(caught.value)
    return caught.value.reason


def test_path_bytes_image_and_array_agree(tmp_path: Path) -> None:
    image = noise()
    path = tmp_path / "a.png"
    image.save(path)
    expected = np.asarray(image)
    for picture in (path, path.read_bytes(), image, expected):
        found = decode(picture)
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), expected)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "La", "PA", "I;16"],
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    found = decode(Image.new(mode, (5, 3)))
    assert (found.mode, found.size) == ("RGB", (5, 3))


def test_transparency_is_white() -> None:
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (0, 0, 0, 0))
    for image in (red, red.convert("PA")):
        found = decode(encoded(image) if image.mode == "RGBA" else image)
        assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), WHITE]
    half = decode(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    assert half == (127, 127, 127)


def test_a_transparent_colour_is_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    found = decode(encoded(palette, transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 200, 0)]
    grey = decode(encoded(Image.new("L", (1, 1), 7), transparency=7))
    assert grey.getpixel((0, 0)) == WHITE
    rgb = decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)))
    assert rgb.getpixel((0, 0)) == WHITE


def test_exif_turns_upright() -> None:
    image = Image.new("RGB", (4, 2), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert decode(encoded(image, "JPEG", exif=exif)).size == (2, 4)
    assert decode(encoded(image, "PNG", exif=exif)).size == (2, 4)


# What a camera held in each of eight ways has stored of an upright picture (Exif 2.3, table 6).
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation(orientation: int) -> None:
    across, down = np.meshgrid(np.arange(24), np.arange(16))
    upright = np.stack([across * 10, down * 15, across * 5 + down * 5], -1).astype(np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encoded(stored, "PNG", exif=exif))), upright)
    found = np.asarray(decode(encoded(stored, "JPEG", exif=exif, quality=100, subsampling=0))).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_does_not_cost_the_picture() -> None:
    found = decode(encoded(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken"))
    assert found.size == (24, 24)


def test_deep_grey_is_scaled_by_its_depth() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    expected = [0, 100, 255]
    deep = Image.fromarray(values)
    assert deep.mode == "I;16"
    for form in ("PNG", "TIFF"):
        assert np.asarray(decode(encoded(deep, form)))[0, :, 0].tolist() == expected
    assert np.asarray(decode(deep.convert("I")))[0, :, 0].tolist() == expected
    assert np.asarray(decode(values))[0, :, 0].tolist() == expected


def test_float_grey() -> None:
    def grey(*values: float) -> list[int]:
        return np.asarray(decode(Image.fromarray(np.array([values], dtype=np.float32))))[0, :, 0].tolist()

    assert grey(0, 0.5, 1) == [0, 128, 255]
    assert grey(0, 100, 255) == [0, 100, 255]
    assert grey(-2, -2) == [0, 0]
    assert grey(float("nan"), float("inf"), 1) == [0, 0, 255]


def test_one_bit_and_cmyk() -> None:
    assert decode(encoded(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == WHITE
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_truncated(form: str, tmp_path: Path) -> None:
    data = encoded(noise(64), form)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    assert reason_of(lambda: decode(path)) == "truncated"
    assert reason_of(lambda: decode(Image.open(path))) == "truncated"


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("fraction", [0.0005, 0.3, 0.6, 0.9, 0.97])
def test_a_file_cut_anywhere(form: str, fraction: float) -> None:
    data = encoded(noise(64), form)
    reason = reason_of(lambda: decode(data[: int(fraction * len(data))]))
    assert reason in (("no image",) if fraction < 0.01 else ("truncated", "damaged"))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(lambda: decode(tmp_path / "gone.png")) == "missing"
    assert reason_of(lambda: decode(tmp_path / ("x" * 5000))) == "missing"
    assert reason_of(lambda: decode(Path("a\0b.png"))) == "missing"
    assert reason_of(lambda: decode(tmp_path / "empty.png")) == "empty"
    assert reason_of(lambda: decode(tmp_path / "text.png")) == "no image"
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    assert reason_of(lambda: decode(tmp_path / "page.jpg")) == "no image"
    assert reason_of(lambda: decode(tmp_path / "pipe.png")) == "not a file"  # and does not wait for a writer
    assert reason_of(lambda: decode(tmp_path)) == "not a file"
    assert reason_of(lambda: decode(Path("/dev/zero"))) == "not a file"


def test_a_message_is_the_same_in_every_run() -> None:
    with pytest.raises(BadSample) as caught:
        decode(b"no picture")
    assert "0x" not in str(caught.value)


def test_limits_hold_before_pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    noise().save(path)
    assert reason_of(lambda: decode(path, most_bytes=100)) == "too many bytes"
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were read"))
    assert reason_of(lambda: decode(path, most_pixels=24 * 24 - 1)) == "too many pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 30_000])
def test_a_bomb(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that say they are gigabytes: on either side of Pillow's own limits, which warn and raise."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were read"))
    assert reason_of(lambda: decode(bomb)) == "too many pixels"


def test_a_program_is_no_picture() -> None:
    """Pillow opens EPS by running Ghostscript on it."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert reason_of(lambda: decode(eps)) == "no image"


def test_arrays() -> None:
    grey = np.array([[0, 255]], dtype=np.uint8)
    for array in (grey, grey[:, :, None], grey == 255, (grey == 255).astype(np.float32)):
        assert np.asarray(decode(array))[0, :, 0].tolist() == [0, 255]
    clear = np.zeros((1, 1, 4), dtype=np.uint8)
    assert decode(clear).getpixel((0, 0)) == WHITE
    for bad in (
        np.zeros(3, np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2), np.uint8),
        np.zeros((2, 2), int),
    ):
        assert reason_of(lambda bad=bad: decode(bad)) == "bad array"
    assert reason_of(lambda: decode(np.full((2, 2), 1.5))) == "bad array"


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags
@settings(deadline=None, max_examples=150)
@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    length=st.floats(0, 1),
)
def test_a_damaged_file_is_a_picture_or_a_bad_sample(form: str, changes: list[tuple[int, int]], length: float) -> None:
    data = bytearray(encoded(noise(), form))
    for place, value in changes:
        data[place % len(data)] = value
    _decoded_or_bad(bytes(data[: int(len(data) * length) + 1]))


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_bad_sample(data: bytes) -> None:
    _decoded_or_bad(data)


def _decoded_or_bad(data: bytes) -> None:
    reason = None
    try:
        assert decode(data).mode == "RGB"
    except BadSample as problem:
        reason = problem.reason
    assert reason in (None, "empty", "no image", "truncated", "damaged", "too many pixels")


def test_threads_share_no_setting() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    whole = encoded(noise(64), "JPEG")
    half, problems = whole[: len(whole) // 2], []

    def work() -> None:
        for _ in range(20):
            decode(whole)
            try:
                decode(half)
            except BadSample as problem:
                if problem.reason != "truncated":
                    problems.append(problem)
            else:
                problems.append("half a file was decoded")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_what_looks_like_a_photograph(tmp_path: Path) -> None:
    def looks(image: Image.Image, name: str) -> bool:
        image.save(tmp_path / name)
        return looks_photographic(tmp_path / name)

    assert looks(noise(32), "small.jpg")
    assert looks(noise(96), "large.png")
    assert not looks(noise(72), "small.png")
    assert not looks(noise(128).convert("RGBA"), "clear.png")
