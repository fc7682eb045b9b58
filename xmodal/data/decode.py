"""The one function that turns a file, bytes, a PIL image or an array into an RGB picture.

| found | becomes |
|---|---|
| EXIF orientation | turned upright |
| transparency (RGBA, LA, PA, a transparent palette colour) | composited on white |
| 16-bit and 32-bit integer grey, float grey | scaled by its depth to 8 bits |
| palette, grey, 1 bit, CMYK, YCbCr, Lab | converted |
| animation | its first frame |

Limits are checked before pixels are decoded. Threads may decode at once. Pillow's LOAD_TRUNCATED_IMAGES, where someone
has set it, does not count here: half a picture is a bad sample.
Only FORMATS are tried: Pillow would hand an EPS file, which is a program, to Ghostscript.
"""

from __future__ import annotations

import io
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from xmodal.errors import BadSample

MOST_PIXELS = 50_000_000
MOST_BYTES = 100_000_000
# What is pixels and nothing else; MPO, what phones write, is found as JPEG. Not ICO: Pillow decodes it to open it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI")
# Which files of a folder are taken for pictures, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".tga")


def decode(
    picture: Path | bytes | Image.Image | np.ndarray, *, most_pixels: int = MOST_PIXELS, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """An RGB image. Arrays are (h, w) or (h, w, 1 | 3 | 4), of uint8, uint16, bool, or float in [0, 1].

    Raises BadSample with one of the reasons: missing, no permission, empty, not a file, too many bytes,
    too many pixels, no image, truncated, damaged, bad array.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    given = isinstance(picture, Image.Image)
    image = picture if given else opened(encoded(picture, most_bytes), most_pixels)
    with pixels_read():
        image.load()
        return to_rgb(_upright(image, in_place=not given))


Decoder = Callable[[Path | bytes], Any]  # a file -> what a view takes; raises BadSample


def decode_each(files: Iterable[Path | bytes], decoders: Sequence[Decoder] | None = None) -> list[Any | BadSample]:
    """The pictures of files, in their order; one that can't be read comes back as the reason why.

    decoders: one for each file, instead of `decode`.
    """
    found: list[Any | BadSample] = []
    for file, decoder in zip(files, repeat(decode) if decoders is None else decoders, strict=decoders is not None):
        try:
            found.append(decoder(file))
        except BadSample as problem:
            found.append(problem)
    return found


def mostly_photographs(files: Iterable[Path | bytes], most: int = 8) -> bool:
    """Whether of the first files that open more than half may be photographs."""

    def found() -> Iterator[bool]:
        for file in files:
            try:
                yield looks_photographic(file)
            except BadSample:
                continue

    first = list(islice(found(), most))
    return 2 * sum(first) > len(first)


def looks_photographic(file: Path | bytes) -> bool:
    """Whether a file may be a photograph, by its header: JPEG, or at least 96 pixels a side and without transparency.

    Raises BadSample for a file that can't be opened.
    """
    image = opened(encoded(file))
    return image.format in ("JPEG", "MPO") or (min(image.size) >= 96 and not image.has_transparency_data)


def encoded(file: Path | bytes, most_bytes: int = MOST_BYTES) -> bytes:
    """What is in a file. Raises BadSample where it can't be read or is too much."""
    data = _read(file, most_bytes) if isinstance(file, Path) else file
    if len(data) > most_bytes:
        raise BadSample("too many bytes", f"{len(data):,}, more than {most_bytes:,}")
    return data


def opened(data: bytes, most_pixels: int = MOST_PIXELS) -> ImageFile.ImageFile:
    """The image with its header read and its size checked, its pixels not decoded yet. Raises BadSample."""
    if not data:
        raise BadSample("empty", "no bytes")
    try:
        with _strictly:
            image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("too many pixels", str(error)) from None
    except Exception:  # its message would be an address in memory, different in every run
        raise BadSample("no image", f"none of {', '.join(_formats())}, or a damaged header") from None
    if image.width * image.height > most_pixels:
        raise BadSample("too many pixels", f"{image.width} × {image.height}, more than {most_pixels:,}")
    return image


@cache
def _formats() -> list[str]:
    """FORMATS without those that this build of Pillow was made without."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would block or never end
            raise BadSample("not a file", f"{path} is no regular file")
        if found.st_size > most_bytes:
            raise BadSample("too many bytes", f"{found.st_size:,}, more than {most_bytes:,}")
        return path.read_bytes()
    except PermissionError as error:
        raise BadSample("no permission", f"{path}: {error.strerror}") from None
    except OSError as error:
        raise BadSample("missing", f"{path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise BadSample("missing", f"{str(path)!r}: {error}") from None


@contextmanager
def pixels_read() -> Iterator[None]:
    """Around what reads pixels: half a picture is an error, whatever the process has set; errors become BadSamples."""
    try:
        with _strictly:
            yield
    except BadSample:
        raise
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "damaged"
        raise BadSample(reason, str(error)) from None
    except Exception as error:  # Pillow's plugins end in exceptions of any kind when bytes inside a file are wrong
        raise BadSample("damaged", f"{type(error).__name__}: {error}") from None


class _Strictly:
    """LOAD_TRUNCATED_IMAGES is off while any thread is inside, and as it was when the last one has left."""

    def __init__(self) -> None:
        self.lock, self.inside, self.was_set = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                ImageFile.LOAD_TRUNCATED_IMAGES, self.was_set = False, True

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.was_set:
                ImageFile.LOAD_TRUNCATED_IMAGES, self.was_set = True, False


_strictly = _Strictly()


def _upright(image: Image.Image, in_place: bool) -> Image.Image:
    """The image itself or a copy: one that was given stays as it is, and of one's own a copy is time lost."""
    try:
        return ImageOps.exif_transpose(image, in_place=in_place) or image
    except Exception:  # a damaged tag must not cost the picture, whose pixels are read already
        return image if in_place else image.copy()


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB, itself if it is, as it lies: orientation is not looked at."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_array(_scaled(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        over = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        under = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(under, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(grey: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of any depth as uint8. Pillow opens 16-bit PNGs as I;16 or I, and would clip where this scales."""
    if mode == "F":
        known = np.where(np.isfinite(grey), grey, 0)
        high = float(known.max())
        most = 1.0 if high <= 1 else 255.0 if high <= 255 else high
        return (np.clip(known / most, 0, 1) * 255).round().astype(np.uint8)
    deep = grey.astype(np.int64)
    most = 65535 if deep.max(initial=0) < 65536 else 2**31 - 1
    return (np.clip(deep, 0, most) * 255 / most).round().astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise BadSample("bad array", f"shape {array.shape}, expected (h, w) or (h, w, 1, 3 or 4)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array / 257).round().astype(np.uint8)
    elif array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise BadSample("bad array", "float pixels must lie in [0, 1]")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise BadSample("bad array", f"type {array.dtype}, expected uint8, uint16, bool or float")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
