"""Files whose bytes were changed: a picture or a bad sample, in a moment; never another error, a crash or a hang."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import zoo
from xmodal.data.cut import cut_file
from xmodal.data.decode import decode
from xmodal.errors import BadSample

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags
SECONDS = 5  # a picture of 64 × 64 takes a thousandth
FORMS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG, progressive": {"progressive": True},
    **{form: {} for form in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "SGI", "PCX", "JPEG2000", "AVIF")},
    "TIFF, compressed": {"compression": "tiff_lzw"},
    "GIF, moving": {"save_all": True, "append_images": [zoo.noise(20)]},
    "WEBP, lossless": {"lossless": True},
}
FILES = {form: zoo.encoded(zoo.noise(), form.partition(",")[0], **options) for form, options in FORMS.items()}
REASONS = {"empty", "no image", "truncated", "damaged", "too many pixels"}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file, mostly its header: bytes and numbers changed, pieces of another one put in, its end cut off."""
    file = bytearray(FILES[draw(st.sampled_from(list(FILES)))])
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.one_of(st.integers(0, min(200, len(file))), st.integers(0, len(file))))
        change = draw(st.sampled_from(["bytes", "number", "piece", "hole"]))
        if change == "bytes":
            file[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
        elif change == "number":  # the ends of what lengths and sizes can be
            number = draw(st.sampled_from([0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            size = 4 if number >= 2**16 else 2
            file[place : place + size] = number.to_bytes(size, draw(st.sampled_from(["big", "little"])))
        elif change == "piece":
            other = FILES[draw(st.sampled_from(list(FILES)))]
            start = draw(st.integers(0, len(other)))
            file[place:place] = other[start : start + draw(st.integers(0, 300))]
        else:
            del file[place : place + draw(st.integers(1, 100))]
    if draw(st.booleans()):
        del file[draw(st.integers(0, len(file))) :]
    return bytes(file)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails a call that doesn't come back; a hang in C code ends by pytest's own limit."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(file: bytes) -> None:
    reasons, details = set(), []
    for read in (decode, lambda data: cut_file(data, lambda w, h: (0, 0, w, h), (8, 8), "bicubic")):
        with at_most(SECONDS):
            try:
                read(file)
            except BadSample as problem:
                reasons.add(problem.reason)
                details.append(str(problem))
    assert reasons <= REASONS
    assert not any("no answer" in detail for detail in details)


@settings(deadline=None, max_examples=400)
@given(file=damaged())
def test_a_damaged_file_is_a_picture_or_a_bad_sample(file: bytes) -> None:
    outcome(file)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000)
@given(file=damaged())
def test_many_damaged_files(file: bytes) -> None:
    outcome(file)


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_bad_sample(data: bytes) -> None:
    outcome(data)
