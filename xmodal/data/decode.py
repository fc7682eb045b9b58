"""The one function that turns a file, bytes, a PIL image or an array into an RGB picture.

| found | becomes |
|---|---|
| EXIF orientation | turned upright |
| transparency (RGBA, LA, PA, a transparent palette colour) | composited on white |
| 16-bit and 32-bit integer grey, float grey | scaled by its depth to 8 bits |
| palette, grey, 1 bit, CMYK, YCbCr, Lab | converted |
| animation | its first frame |

Limits are checked before pixels are decoded. No global setting of Pillow is read or changed.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xmodal.errors import BadSample

MOST_PIXELS = 50_000_000
MOST_BYTES = 100_000_000


def decode(
    picture: Path | bytes | Image.Image | np.ndarray, *, most_pixels: int = MOST_PIXELS, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """An RGB image. Arrays are (h, w) or (h, w, 1 | 3 | 4), of uint8, uint16, bool, or float in [0, 1].

    Raises BadSample with one of the reasons: missing, empty, not a file, too many bytes, too many pixels, no image,
    truncated, damaged, bad array.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        return _to_rgb(picture)
    data = _read(picture, most_bytes) if isinstance(picture, Path) else picture
    if not data:
        raise BadSample("empty", "no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the stricter one
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadSample("too many pixels", str(error)) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadSample("no image", f"no image format that Pillow knows: {error}") from None
    if image.width * image.height > most_pixels:
        raise BadSample("too many pixels", f"{image.width} × {image.height}, more than {most_pixels:,}")
    try:
        image.load()
        return _to_rgb(image)
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "damaged"
        raise BadSample(reason, str(error)) from None
    except (ValueError, SyntaxError, IndexError, EOFError, MemoryError, TypeError, ZeroDivisionError) as error:
        # Pillow's plugins end in all of these when bytes inside a file are wrong.
        raise BadSample("damaged", f"{type(error).__name__}: {error}") from None


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would block or never end
            raise BadSample("not a file", f"{path} is no regular file")
        if found.st_size > most_bytes:
            raise BadSample("too many bytes", f"{found.st_size:,}, more than {most_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise BadSample("missing", f"{path}: {error.strerror}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_array(_scaled(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        under = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(under, over).convert("RGB")
    return image.convert("RGB")


def _scaled(grey: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of any depth as uint8. Pillow opens 16-bit PNGs as I;16 or I, and would clip where this scales."""
    if mode == "F":
        low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
        high = 1.0 if 0 <= low and high <= 1 else 255.0 if 0 <= low and high <= 255 else high
        return np.nan_to_num(np.clip(grey / high, 0, 1) * 255).round().astype(np.uint8)
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
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
