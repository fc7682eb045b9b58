"""From a picture's file to a view of it, on one thread: beside Pillow and torchvision, as open_clip reads for training.

Both take the same rectangle of the same file. The clock counts what the thread itself computes, so that other work on
the machine moves the figures little. PSNR compares the two views: 50 dB are a root mean square error of 0.8 of 255.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from xmodal.benchmarks.timing import machine
from xmodal.data.augment import DRAWS, Crop
from xmodal.data.cut import Box, cut_file, stored_box, upright
from xmodal.data.decode import SUFFIXES, decode, opened
from xmodal.encoders.preparation import Preparation
from xmodal.errors import BadSample, InputError

SIDE = 224
MOST_FILES = 200  # of a folder, evenly over its sorted names
OURS, EXACT, THEIRS = "xmodal", "xmodal, exact", "open_clip"


def compare(data: str | None, repeats: int) -> dict[str, Any]:
    """For each kind of file: median seconds, ours and theirs, the ratio, the least of a single file, the least PSNR.

    data: a folder of pictures; None makes some. Raises InputError for a folder without any.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        files, bad = (_made(), 0) if data is None else _found(Path(data))
        crop = Crop(Preparation(SIDE, SIDE), (0.9, 1.0), (3 / 4, 4 / 3), flip=False)
        measured: dict[str, list[dict[str, float]]] = {}
        for number, (kind, file) in enumerate(files):
            draws = np.random.default_rng(number).random(DRAWS)
            measured.setdefault(kind, []).append(_one(file, partial(crop.rectangle, draws), repeats))
        protocol = {
            "data": "made here: noise with the spectrum of photographs" if data is None else data,
            "bad files left out": bad,
            "view": f"{SIDE} × {SIDE}, bicubic, a rectangle of 0.9 to 1 of the area with whole pixels as its edges",
            "theirs": "Image.open, torchvision's resized_crop, convert('RGB'), a uint8 tensor",
            "dB": "PSNR of our view to theirs, the least of a kind's files; – where they drop transparency",
            "least": "the ratio of the file where it is least",
            "exact": "with --decode exact",
            "seconds": f"of the thread's own computing, in turn, medians of {repeats}",
            "simplejpeg": _version("simplejpeg"),
            **machine(),
        }
    finally:
        torch.set_num_threads(threads)
    return {
        "what": "from a file in memory to a view of its picture",
        "protocol": protocol,
        "kinds": {kind: _summed_up(ones) for kind, ones in measured.items()},
    }


def theirs(file: bytes, box: tuple[int, int, int, int]) -> Tensor:
    """(3, SIDE, SIDE) uint8 as open_clip's training reads it, at a box that is given.

    But palettes become colours first: open_clip does that last, and takes one of the nearest pixels' colours.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import pil_to_tensor, resized_crop

    left, top, right, bottom = box
    image: Any = Image.open(io.BytesIO(file))
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGB")
    view: Any = resized_crop(image, top, left, bottom - top, right - left, [SIDE, SIDE], InterpolationMode.BICUBIC)
    return pil_to_tensor(view.convert("RGB"))


def _one(file: bytes, rectangle: Callable[[int, int], Box], repeats: int) -> dict[str, float]:
    size = (SIDE, SIDE)
    box, orientation = stored_box(opened(file), rectangle, size)
    functions: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: cut_file(file, rectangle, size, "bicubic"),
        EXACT: lambda: cut_file(file, rectangle, size, "bicubic", exact=True),
        THEIRS: lambda: theirs(file, box),
    }
    views = {name: function() for name, function in functions.items()}  # a first time that doesn't count
    expected = upright(views[THEIRS], orientation)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            start = time.thread_time()
            functions[name]()
            seconds[name].append(time.thread_time() - start)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    if not opened(file).has_transparency_data:  # theirs shows what is behind it, or black
        found |= {"PSNR": psnr(views[OURS], expected), "PSNR, exact": psnr(views[EXACT], expected)}
    return found


def psnr(view: Tensor, expected: Tensor) -> float:
    """Decibels; 100 for equal ones."""
    error = (view.double() - expected.double()).square().mean().item()
    return min(100.0, 10 * float(np.log10(255**2 / error))) if error else 100.0


def _summed_up(files: list[dict[str, float]]) -> dict[str, float | None]:
    medians = {name: statistics.median(file[name] for file in files) for name in (OURS, EXACT, THEIRS)}
    return {
        "files": len(files),
        **medians,
        "ratio": medians[THEIRS] / medians[OURS],
        "least ratio": min(file[THEIRS] / file[OURS] for file in files),
        "PSNR": min((file["PSNR"] for file in files if "PSNR" in file), default=None),
        "ratio, exact": medians[THEIRS] / medians[EXACT],
        "least ratio, exact": min(file[THEIRS] / file[EXACT] for file in files),
        "PSNR, exact": min((file["PSNR, exact"] for file in files if "PSNR" in file), default=None),
    }


def _found(folder: Path) -> tuple[list[tuple[str, bytes]], int]:
    """The pictures of a folder by kind, and how many of it are bad."""
    if not folder.is_dir():
        raise InputError(f"--data {str(folder)!r} is no folder of pictures.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files, bad = [], 0
    for path in paths[:: max(1, len(paths) // MOST_FILES)][:MOST_FILES]:
        try:
            decode(path)
        except BadSample:
            bad += 1
        else:
            files.append((_kind(path.read_bytes()), path.read_bytes()))
    if not files:
        raise InputError(f"{folder} has no picture that can be read; their names end in {', '.join(SUFFIXES)}.")
    return sorted(files, key=lambda file: file[0]), bad


def _kind(file: bytes) -> str:
    image = opened(file)
    pixels = image.width * image.height / 1e6
    clear = " transparent" if image.has_transparency_data else ""
    size = "over 3 Mpx" if pixels > 3 else "1 to 3 Mpx" if pixels > 1 else "under 1 Mpx"
    return f"{image.format}{' progressive' if image.info.get('progressive') else ''} {image.mode}{clear}, {size}"


def _made() -> Iterator[tuple[str, bytes]]:
    """Files of many kinds, two of each: one with as much fine detail as a sharp photograph, one of a softer lens."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for number, power in enumerate((1.2, 1.5)):
        large = photograph(1600, 1200, power, number)
        for quality in (75, 85, 90, 95):
            yield f"JPEG 1600×1200, quality {quality}", _encoded(large, "JPEG", quality=quality)
        yield "JPEG 1600×1200, 4:4:4", _encoded(large, "JPEG", quality=90, subsampling=0)
        yield "JPEG 1600×1200, progressive", _encoded(large, "JPEG", quality=90, progressive=True)
        yield "JPEG 1600×1200, turned", _encoded(large, "JPEG", quality=90, exif=turned)
        yield "JPEG 1600×1200, grey", _encoded(large.convert("L"), "JPEG", quality=90)
        yield "JPEG 1600×1200, CMYK", _encoded(large.convert("CMYK"), "JPEG", quality=90)
        whole = photograph(4000, 3000, power, number)
        yield "JPEG 4000×3000", _encoded(whole, "JPEG", quality=90)
        for width, height in ((640, 480), (256, 256), (64, 64)):
            small = large.crop((0, 0, width, height))
            yield f"JPEG {width}×{height}", _encoded(small, "JPEG", quality=90)
        medium = large.crop((0, 0, 800, 600))
        yield "PNG 800×600", _encoded(medium, "PNG")
        yield "PNG 64×64", _encoded(large.crop((0, 0, 64, 64)), "PNG")
        yield "PNG 800×600, grey", _encoded(medium.convert("L"), "PNG")
        yield "WebP 800×600", _encoded(medium, "WEBP", quality=85)
        yield "BMP 800×600", _encoded(medium, "BMP")


def photograph(width: int, height: int, power: float, seed: int) -> Image.Image:
    """Noise whose amplitude falls as 1 / frequency^power, as that of photographs does: 1.2 on average, Tolhurst, Tadmor
    & Chao 1992, "Amplitude spectra of natural images"; colours are less apart than brightness."""
    random = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(down * height, across * width)  # cycles a picture
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(4):
        phases = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
        plane = np.fft.irfft2(phases / frequency**power, s=(height, width))
        planes.append(plane / plane.std())
    pixels = 128 + 50 * planes[0][..., None] + 18 * np.stack(planes[1:], -1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not there; pip install "xmodal[fast]"'
