"""A picture's file as `xmodal data pack` stores it: no larger than training needs, and never worse than that costs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from xmodal.data.decode import decode, encoded, opened, pixels_read

QUALITY = 95  # of JPEGs, img2dataset's default
COLOURS = 256  # a picture with no more of them is a drawing
# What readers of shards open everywhere, by Pillow's name and the suffix it gets. Everything else is written anew.
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def shrunk(stored: Path | bytes | np.ndarray, size: int) -> tuple[str, bytes]:
    """The suffix and the bytes of a picture whose short side is `size`, or less where it was less.

    A file of KEPT that is small enough and upright stays as it is, byte for byte. Of others drawings (few colours, or
    transparency) become PNG, and all else JPEG; transparency is put on white. Raises BadSample as `decode` does.
    """
    drawing = False
    if not isinstance(stored, np.ndarray):
        stored = encoded(stored)
        header = opened(stored)
        drawing = header.has_transparency_data
        with pixels_read():  # a PNG's may stand after them
            upright = header.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if header.format in KEPT and min(header.size) <= size and upright and not getattr(header, "is_animated", False):
            decode(stored)  # what can't be read must not be packed
            return KEPT[header.format], stored
    picture = decode(stored)
    drawing = drawing or picture.getcolors(COLOURS) is not None
    scale = size / min(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if drawing:
        picture.save(file, "PNG", optimize=True)
        return "png", file.getvalue()
    picture.save(file, "JPEG", quality=QUALITY)
    return "jpg", file.getvalue()
