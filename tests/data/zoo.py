"""Picture files of every kind, each with what it must become, written down by hand: its pixels, or why it is none.

A pixel's expected value comes from the mode's definition, not from Pillow; `off` is how far a lossy format may be.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
RGB = (RED, GREEN, BLUE, (255, 128, 7), BLACK, WHITE)  # two rows of three
SIDE = 16  # of flat squares, in lossy formats


@dataclass(frozen=True)
class Specimen:
    """file: its bytes, or what makes it at a path. becomes: (h, w, 3) pixels, or the reason why it is no picture."""

    file: bytes | Callable[[Path], object]
    becomes: np.ndarray | str
    off: int = 0


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def of(mode: str, values: Sequence[Any], width: int = 3) -> Image.Image:
    """An image of these pixels, row by row."""
    image = Image.new(mode, (width, len(values) // width))
    image.putdata(list(values))
    return image


def pixels(values: Sequence[Any], width: int = 3) -> np.ndarray:
    """(h, w, 3) of RGB triples, or of grey values."""
    rgb = [value if isinstance(value, tuple) else (value,) * 3 for value in values]
    return np.array(rgb, dtype=np.uint8).reshape(-1, width, 3)


def flat(mode: str, value: Any, side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side), value)


def square(value: tuple[int, int, int] | int, side: int = SIDE) -> np.ndarray:
    return np.broadcast_to(pixels([value], 1), (side, side, 3))


def photographs() -> dict[str, Specimen]:
    """Every mode that a file can have, in the formats that have it."""
    opaque, clear = Image.new("RGBA", (3, 2)), of("RGBA", [(*RED, 255), (*RED, 128), (*RED, 0)])
    opaque.putdata([(*value, 255) for value in RGB])
    on_white = pixels([RED, (255, 127, 127), WHITE])
    palette = of("P", [0, 1, 2])
    palette.putpalette([*RED, *GREEN, *BLUE])
    deep = Image.fromarray(np.array([[0, 100 * 257, 65535]], dtype=np.uint16))
    found = {
        "1.png": Specimen(encoded(of("1", [0, 255, 0]), "PNG"), pixels([0, 255, 0])),
        "1.bmp": Specimen(encoded(of("1", [0, 255, 0]), "BMP"), pixels([0, 255, 0])),
        "1.pbm": Specimen(encoded(of("1", [0, 255, 0]), "PPM"), pixels([0, 255, 0])),
        "l.png": Specimen(encoded(of("L", [0, 7, 255]), "PNG"), pixels([0, 7, 255])),
        "l.jpg": Specimen(encoded(flat("L", 77), "JPEG", quality=95), square(77), off=1),
        "l_with_a_clear_grey.png": Specimen(
            encoded(of("L", [0, 7, 255]), "PNG", transparency=7), pixels([0, WHITE, 255])
        ),
        # 100 · 128 / 255 + 255 · 127 / 255 = 177.2
        "la.png": Specimen(encoded(of("LA", [(100, 255), (100, 128), (100, 0)]), "PNG"), pixels([100, 177, 255])),
        "p.png": Specimen(encoded(palette, "PNG"), pixels([RED, GREEN, BLUE])),
        "p.gif": Specimen(encoded(palette, "GIF"), pixels([RED, GREEN, BLUE])),
        "p_with_a_clear_colour.png": Specimen(encoded(palette, "PNG", transparency=1), pixels([RED, WHITE, BLUE])),
        "p_with_a_clear_colour.gif": Specimen(encoded(palette, "GIF", transparency=1), pixels([RED, WHITE, BLUE])),
        "p_with_alphas.png": Specimen(
            encoded(palette, "PNG", transparency=bytes([255, 0, 128])), pixels([RED, WHITE, (127, 127, 255)])
        ),
        "rgb_with_a_clear_colour.png": Specimen(
            encoded(of("RGB", RGB), "PNG", transparency=GREEN), pixels([RED, WHITE, *RGB[2:]])
        ),
        "rgba.png": Specimen(encoded(clear, "PNG"), on_white),
        "rgba.tif": Specimen(encoded(clear, "TIFF"), on_white),
        "rgba.tga": Specimen(encoded(clear, "TGA"), on_white),
        "rgba.webp": Specimen(encoded(clear, "WEBP", lossless=True, exact=True), on_white),
        "rgba_opaque.png": Specimen(encoded(opaque, "PNG"), pixels(RGB)),
        "cmyk.tif": Specimen(
            encoded(of("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)]), "TIFF"),
            pixels([WHITE, (0, 255, 255), 0]),
        ),
        "cmyk.jpg": Specimen(encoded(flat("CMYK", (255, 0, 0, 0)), "JPEG", quality=95), square((0, 255, 255)), off=2),
        # JFIF: red is Y 76, Cb 85, Cr 255
        "ycbcr.tif": Specimen(
            encoded(of("YCbCr", [(128, 128, 128), (76, 85, 255)], 2), "TIFF"), pixels([128, RED], 2), 2
        ),
        # L* 0, 100 and 50 without colour; sRGB of L* 50 is 119
        "lab.tif": Specimen(
            encoded(of("LAB", [(0, 128, 128), (255, 128, 128), (128, 128, 128)]), "TIFF"), pixels([0, 255, 119]), off=3
        ),
        "16_bit.png": Specimen(encoded(deep, "PNG"), pixels([0, 100, 255])),
        "16_bit.tif": Specimen(encoded(deep, "TIFF"), pixels([0, 100, 255])),
        "16_bit_rgb.png": Specimen(
            png(3, 1, 16, 2, [0, *deep_rgb(RED, GREEN, (9, 99, 199))]), pixels([RED, GREEN, (9, 99, 199)])
        ),
        "32_bit.tif": Specimen(encoded(of("I", [0, 100 * 257, 65535]), "TIFF"), pixels([0, 100, 255])),
        "float.tif": Specimen(encoded(of("F", [0.0, 0.5, 1.0]), "TIFF"), pixels([0, 128, 255])),
        "interlaced_2_bit.png": Specimen(png(1, 1, 2, 0, [0, 0b10_000000]), pixels([170], 1)),
    }
    for name, form, options in (
        *(("rgb.png", "PNG", {}), ("rgb.bmp", "BMP", {}), ("rgb.tif", "TIFF", {}), ("rgb.ppm", "PPM", {})),
        *(
            ("rgb.tga", "TGA", {}),
            ("rgb.webp", "WEBP", {"lossless": True}),
            ("rgb_lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ),
        *(("rgb.pcx", "PCX", {}), ("rgb.sgi", "SGI", {}), ("rgb.jp2", "JPEG2000", {})),
        ("a_png_that_says.jpg", "PNG", {}),
    ):
        found[name] = Specimen(encoded(of("RGB", RGB), form, **options), pixels(RGB))
    for name, form, options in (
        *(("rgb.jpg", "JPEG", {"quality": 95}), ("progressive.jpg", "JPEG", {"quality": 95, "progressive": True})),
        *(("rgb_inside.jpg", "JPEG", {"quality": 95, "keep_rgb": True}), ("lossy.webp", "WEBP", {"quality": 95})),
        ("rgb.avif", "AVIF", {"quality": 95}),
    ):
        found[name] = Specimen(encoded(flat("RGB", (255, 128, 7)), form, **options), square((255, 128, 7)), off=4)
    for name, form, options in (
        *(("first.gif", "GIF", {}), ("first.png", "PNG", {}), ("first.webp", "WEBP", {"lossless": True})),
        ("first.tif", "TIFF", {}),
    ):
        frames = [flat("RGB", colour) for colour in (RED, BLUE, GREEN)]
        file = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        found[name] = Specimen(file, square(RED))
    return found


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


def turned() -> dict[str, Specimen]:
    """A camera held in each of eight ways, and tags that say nothing."""
    across, down = np.meshgrid(np.arange(24), np.arange(16))
    upright = np.stack([across * 10, down * 15, across * 5 + down * 5], -1).astype(np.uint8)
    found = {}
    for orientation, stored in STORED.items():
        image, exif = Image.fromarray(np.ascontiguousarray(stored(upright))), Image.Exif()
        exif[0x0112] = orientation
        for suffix, form, off, options in (
            ("jpg", "JPEG", 6, {"quality": 100, "subsampling": 0}),
            ("png", "PNG", 0, {}),
            ("tif", "TIFF", 0, {}),
            ("webp", "WEBP", 0, {"lossless": True}),
        ):
            found[f"turned_{orientation}.{suffix}"] = Specimen(encoded(image, form, exif=exif, **options), upright, off)
    broken = b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken"
    found["turned_who_knows.jpg"] = Specimen(encoded(flat("L", 77), "JPEG", quality=95, exif=broken), square(77), off=1)
    return found


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def cut_short() -> dict[str, Specimen]:
    """The first part of a file, from its first bytes to nearly all."""
    found = {}
    for suffix, form in (("jpg", "JPEG"), ("png", "PNG"), ("bmp", "BMP"), ("gif", "GIF")):
        file = encoded(noise(), form)
        for percent in (0.1, 30, 60, 90, 97):
            reason = "no image" if percent < 1 else "truncated"
            found[f"cut_at_{percent:g}.{suffix}"] = Specimen(file[: int(len(file) * percent / 100)], reason)
    return found


def bombs() -> dict[str, Specimen]:
    """A few bytes that say they are gigabytes, on either side of Pillow's own limits, which warn and raise."""
    files = {f"bomb_{side}.png": png(side, side, 8, 2, bytes(1000)) for side in (8_000, 12_000, 30_000)}
    jp2 = encoded(flat("RGB", RED), "JPEG2000")
    files["bomb.jp2"] = _with(jp2, jp2.index(b"ihdr") + 4, struct.pack(">II", 60_000, 60_000))
    size = jp2.index(b"\xff\x51") + 6  # the codestream's own (SIZ, ISO/IEC 15444-1 A.5.1)
    inside = _with(jp2, size, struct.pack(">II", 60_000, 60_000))
    whole = encoded(flat("RGB", RED), "JPEG")
    frame = whole.index(b"\xff\xc0") + 5
    files["bomb.jpg"] = whole[:frame] + struct.pack(">HH", 60_000, 60_000) + whole[frame + 4 :]
    files["bomb.bmp"] = _with(encoded(flat("RGB", RED), "BMP"), 18, struct.pack("<ii", 30_000, 30_000))
    files["bomb.gif"] = _with(encoded(flat("P", 0), "GIF"), 6, struct.pack("<HH", 60_000, 60_000))
    files["bomb_inside.gif"] = _frame_of(60_000)
    canvas = (16_383).to_bytes(3, "little") * 2
    riff = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes([0, 0, 0, 0]) + canvas
    vp8l = encoded(flat("RGB", RED), "WEBP", lossless=True)[12:]
    files["bomb.webp"] = b"RIFF" + struct.pack("<I", len(riff + vp8l)) + riff + vp8l
    files["bomb.tga"] = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0) + bytes(100)
    files["bomb.ppm"] = b"P6 30000 30000 255\n" + bytes(100)
    files["bomb.tif"] = _tiff(30_000)
    files["bomb.sgi"] = _with(encoded(flat("RGB", RED), "SGI"), 6, struct.pack(">HH", 60_000, 60_000))
    files["bomb.pcx"] = _with(encoded(flat("RGB", RED), "PCX"), 8, struct.pack("<HH", 60_000, 60_000))
    found = {name: Specimen(file, "too many pixels") for name, file in files.items()}
    return {**found, "bomb_inside.jp2": Specimen(inside, "damaged")}


def no_pictures() -> dict[str, Specimen]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return {
        "empty.jpg": Specimen(b"", "empty"),
        "page.jpg": Specimen(page, "no image"),
        "text.png": Specimen(b"no picture", "no image"),
        "random.jpg": Specimen(np.random.default_rng(0).bytes(10_000), "no image"),
        "zeros.png": Specimen(bytes(10_000), "no image"),
        "program.jpg": Specimen(eps, "no image"),  # Pillow would run Ghostscript on it
        "icon.jpg": Specimen(encoded(flat("RGBA", (*RED, 255)), "ICO"), "no image"),  # decoded to be opened: no limit
        "drawing.jpg": Specimen(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image"),
        "header_only.png": Specimen(png(4, 4, 8, 2, b"")[:33], "no image"),
        "folder.jpg": Specimen(os.mkdir, "not a file"),
        "pipe.jpg": Specimen(os.mkfifo, "not a file"),  # whoever opens it waits for a writer
        "device.jpg": Specimen(lambda path: path.symlink_to("/dev/zero"), "not a file"),
        "gone.jpg": Specimen(lambda path: None, "missing"),
        "link_to_itself.jpg": Specimen(lambda path: path.symlink_to(path), "missing"),
    }


def zoo() -> dict[str, Specimen]:
    return {**photographs(), **turned(), **cut_short(), **bombs(), **no_pictures()}


def put(specimen: Specimen, path: Path) -> None:
    if isinstance(specimen.file, bytes):
        path.write_bytes(specimen.file)
    else:
        specimen.file(path)


def png(width: int, height: int, depth: int, colours: int, scanlines: bytes | Sequence[int]) -> bytes:
    """A PNG chunk by chunk (W3C PNG, section 11), whatever it says it holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    data = zlib.compress(bytes(scanlines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep_rgb(*values: tuple[int, int, int]) -> list[int]:
    """8-bit values as the two bytes of 16-bit ones."""
    return [half for value in values for channel in value for half in (channel, channel)]


def _with(file: bytes, place: int, other: bytes) -> bytes:
    return file[:place] + other + file[place + len(other) :]


def _frame_of(side: int) -> bytes:
    """A GIF with a small screen, and a frame that is not (GIF89a, section 20)."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes([*RED, *BLUE])
    return screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + bytes([2, 2, 0x44, 0x01, 0]) + b";"


def _tiff(side: int) -> bytes:
    """One strip of a single byte (TIFF 6.0, section 4)."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\x00" + struct.pack("<IH", 10, 0) + struct.pack("<H", len(tags)) + entries + bytes(4)
