"""Small pictures that lie in the page itself, made anew from pixels: nothing of a file but its picture comes along."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xmodal.data.decode import decode
from xmodal.errors import BadSample
from xmodal.report.evaluated import Shown

SIDE = 112  # pixels of the longer side
MOST_BYTES = 6_000  # of a file; a photograph takes some 4,000
TOGETHER = 32  # pictures that are decoded at a time


@dataclass(frozen=True)
class Thumbnail:
    """A data URI; or "" and the reason why there is no picture."""

    uri: str
    name: str
    problem: str = ""


def thumbnails(source: Shown, rows: Iterable[int]) -> dict[int, Thumbnail]:
    """The rows' pictures, each made once."""
    wanted = sorted(set(rows))
    found = {}
    for start in range(0, len(wanted), TOGETHER):
        some = wanted[start : start + TOGETHER]
        for row, picture in zip(some, source.images(np.array(some)), strict=True):
            found[row] = _thumbnail(picture, source.key(row))
    return found


def _thumbnail(picture: Image.Image | np.ndarray | BadSample, name: str) -> Thumbnail:
    try:
        if isinstance(picture, BadSample):
            raise picture
        return Thumbnail(data_uri(decode(picture)), name)
    except BadSample as problem:
        return Thumbnail("", name, problem.reason)


def data_uri(image: Image.Image) -> str:
    """An RGB picture of any size as a data URI of at most SIDE pixels a side and, but for noise, MOST_BYTES."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    image.info = {}  # Pillow would copy a comment or a colour profile into the file
    drawn = _encoded(image, "PNG", optimize=True)
    data, kind = drawn, "png"
    for quality in (80, 60, 40, 20):
        if len(data) <= MOST_BYTES:
            break
        data, kind = _encoded(image, "JPEG", quality=quality), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
