"""Decoding: every kind of picture becomes upright RGB, and everything else becomes a BadSample."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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


# What only an image in memory can be; files of every kind are in test_zoo.py.
IN_MEMORY = {
    "1": (255, WHITE),
    "L": (77, (77, 77, 77)),
    "LA": ((0, 128), (127, 127, 127)),
    "La": ((64, 128), (191, 191, 191)),  # premultiplied: 64 + 255 · 127 / 255
    "P": (0, (0, 0, 0)),
    "PA": ((0, 0), WHITE),
    "RGB": ((1, 2, 3), (1, 2, 3)),
    "RGBX": ((1, 2, 3, 0), (1, 2, 3)),
    "RGBA": ((255, 0, 0, 128), (255, 127, 127)),
    "RGBa": ((128, 0, 0, 128), (255, 127, 127)),
    "CMYK": ((0, 255, 0, 0), (255, 0, 255)),
    "YCbCr": ((200, 128, 128), (200, 200, 200)),
    "LAB": ((255, 128, 128), WHITE),
    "HSV": ((0, 255, 200), (200, 0, 0)),
    "I": (100 * 257, (100, 100, 100)),
    "I;16": (100 * 257, (100, 100, 100)),
    "I;16B": (100 * 257, (100, 100, 100)),
    "F": (0.5, (128, 128, 128)),
}


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_every_mode_becomes_rgb(mode: str) -> None:
    value, expected = IN_MEMORY[mode]
    found = decode(Image.new(mode, (5, 3), value))
    assert (found.mode, found.size) == ("RGB", (5, 3))
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


def test_transparency_is_white() -> None:
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (0, 0, 0, 0))
    for image in (red, red.convert("PA")):
        found = decode(encoded(image) if image.mode == "RGBA" else image)
        assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), WHITE]
    half = decode(Image.new("LA", (1, 1), (0, 128))).getpixel((0, 0))
    assert half == (127, 127, 127)


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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_truncated(form: str, tmp_path: Path) -> None:
    data = encoded(noise(64), form)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    assert reason_of(lambda: decode(path)) == "truncated"
    assert reason_of(lambda: decode(Image.open(path))) == "truncated"


def test_names_of_no_file() -> None:
    assert reason_of(lambda: decode(Path("x" * 5000))) == "missing"
    assert reason_of(lambda: decode(Path("a\0b.png"))) == "missing"
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
