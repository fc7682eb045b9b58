"""The built-in set: its protocol, in counts and in pictures."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from xmodal.data import glyphs
from xmodal.data.glyphs import EM, SIDE, TESTS, TRAIN_FACES, Glyphs, Kinds, draw, held_out, kind

SPLITS = ("train", *TESTS)


@pytest.fixture(scope="module")
def sources() -> dict[str, Glyphs]:
    return {split: Glyphs(split) for split in SPLITS}


def names(source: Glyphs) -> set[str]:
    return {name for row in range(len(source)) for name in source.texts(row)}


def test_counts(sources: dict[str, Glyphs]) -> None:
    """Ranges, since matplotlib's typefaces and Python's names grow."""
    drawn = sum(not held_out(name) for face in TRAIN_FACES for name in draw(face)[0])
    assert 28_000 < drawn < 33_000  # characters in eight faces; fewer rows, since some are drawn alike
    assert 20_000 < len(sources["train"]) < drawn
    for split, expected in {"train": 5600, "unseen_typeface": 2850, "unseen_names": 580, "other_family": 1940}.items():
        assert abs(len(names(sources[split])) / expected - 1) < 0.05
    train = sources["train"]
    assert abs(len(train) / 22_100 - 1) < 0.05
    assert abs(sum(map(len, train.names)) / 24_100 - 1) < 0.05  # pairs of a picture and a name, as the README counts


def test_held_out_names_are_in_their_test_only(sources: dict[str, Glyphs]) -> None:
    assert not any(map(held_out, names(sources["train"])))
    assert all(map(held_out, names(sources["unseen_names"])))
    for split in ("unseen_typeface", "other_family"):
        assert names(sources[split]) <= names(sources["train"])
    everything = {name for face in TRAIN_FACES for name in draw(face)[0]}
    assert 0.08 < sum(map(held_out, everything)) / len(everything) < 0.12
    assert not held_out("LATIN SMALL LETTER A")  # the same on every machine
    assert held_out("COMMA")


def test_equal_pixels_are_one_row(sources: dict[str, Glyphs]) -> None:
    for source in sources.values():
        assert len({picture.tobytes() for picture in source.pictures}) == len(source)
        assert len(set(source.image_id.tolist())) == len(source)
        assert all(len(set(told)) == len(told) > 0 for told in source.names)
    train = sources["train"]
    row = next(row for row in range(len(train)) if train.key(row) == "DejaVuSans/LATIN CAPITAL LETTER A")
    assert "GREEK CAPITAL LETTER ALPHA" in train.texts(row)


def test_equal_pixels_have_equal_ids_across_splits(sources: dict[str, Glyphs]) -> None:
    train = {p.tobytes(): i for p, i in zip(sources["train"].pictures, sources["train"].image_id, strict=True)}
    shares = {}
    for split in TESTS:
        shared = 0
        for picture, image_id in zip(sources[split].pictures, sources[split].image_id, strict=True):
            known = train.get(picture.tobytes())
            assert known is None or known == image_id
            shared += known is not None
        shares[split] = shared / len(sources[split])
    # As the protocol says of braille, box drawings and characters of the same form.
    assert 0.08 < shares["unseen_typeface"] < 0.15
    assert 0.08 < shares["unseen_names"] < 0.15
    assert shares["other_family"] < 0.01


def test_what_draws_nothing_is_left_out(sources: dict[str, Glyphs]) -> None:
    found = names(sources["train"]) | names(sources["unseen_names"])
    assert not found & {"SPACE", "NO-BREAK SPACE", "LINE SEPARATOR", "ZERO WIDTH SPACE", "BRAILLE PATTERN BLANK", ""}
    for source in sources.values():
        assert (source.pictures.reshape(len(source), -1).min(1) < 128).all()


@pytest.mark.parametrize("face", ["DejaVuSans", "DejaVuSansMono-Bold", "STIXGeneral"])
def test_no_ink_is_cut_off(face: str) -> None:
    """On paper three times as large, a character has no more ink than in its picture."""
    from matplotlib import get_data_path

    path = str(Path(get_data_path()) / "fonts" / "ttf" / f"{face}.ttf")
    told, pictures = draw(face)
    fonts = {size: ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC) for size in range(8, EM + 1)}
    tall = {
        "LATIN CAPITAL LETTER A WITH RING ABOVE",
        "LATIN CAPITAL LETTER A WITH RING ABOVE AND ACUTE",
        "LATIN CAPITAL LETTER C WITH CEDILLA",
        "LATIN SMALL LETTER J",
        "FULL BLOCK",
    }
    assert len(tall & set(told)) >= 4
    for i, (name, picture) in enumerate(zip(told, pictures, strict=True)):
        if i % 4 and name not in tall:
            continue
        character = unicodedata.lookup(name)
        left, top, right, bottom = fonts[EM].getbbox(character, anchor="ls")
        extent = max(right - left, bottom - top)
        font = fonts[EM if extent <= SIDE else max(8, int(EM * SIDE / extent))]
        left, _, right, _ = font.getbbox(character, anchor="ls")
        paper = Image.new("L", (3 * SIDE, 3 * SIDE), 255)
        x = SIDE + (SIDE - (right - left)) / 2 - left
        ImageDraw.Draw(paper).text((x, 2 * SIDE), character, fill=0, font=font, anchor="ls")
        assert (255 - picture.astype(int)).sum() == (255 - np.asarray(paper).astype(int)).sum(), name


def test_capitals_are_taller_than_small_letters() -> None:
    told, pictures = draw("DejaVuSans")
    heights = {}
    for letter in ("SMALL", "CAPITAL"):
        picture = pictures[told.index(f"LATIN {letter} LETTER X")]
        heights[letter] = int((picture.min(1) < 128).sum())
    assert heights["CAPITAL"] > 1.2 * heights["SMALL"]


def test_images_are_pictures(sources: dict[str, Glyphs]) -> None:
    source = sources["unseen_names"]
    found = source.images(np.array([3, 0]))
    assert [np.asarray(picture).tolist() for picture in found] == source.pictures[[3, 0]].tolist()
    assert source.pictures.shape[1:] == (SIDE, SIDE)
    assert source.image_id.dtype == np.int64


def test_fingerprints_are_stable_and_differ(sources: dict[str, Glyphs]) -> None:
    assert len({source.fingerprint() for source in sources.values()}) == len(SPLITS)
    assert Glyphs("unseen_names").fingerprint() == sources["unseen_names"].fingerprint()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LATIN SMALL LETTER N WITH CARON", "latin"),
        ("GREEK CAPITAL LETTER ALPHA", "greek"),
        ("COMBINING GREEK YPOGEGRAMMENI", "combining"),
        ("RIGHTWARDS ARROW", "arrow"),
        ("LEFT ARROW WITH SMALL CIRCLE", "arrow"),
        ("BRAILLE PATTERN DOTS-12", "braille pattern"),
        ("BOX DRAWINGS LIGHT HORIZONTAL", "box drawings"),
        ("DOLLAR SIGN", None),
    ],
)
def test_kinds_by_name(name: str, expected: str | None) -> None:
    assert kind(name) == expected


@pytest.mark.parametrize("split", TESTS)
def test_zero_shot_classes(split: str) -> None:
    kinds = Kinds(split)
    assert len(kinds) == len(kinds.labels) == len(kinds.image_id) > 300
    assert set(kinds.labels.tolist()) == set(range(len(kinds.classes)))  # no class is empty
    assert {"latin", "greek", "cyrillic", "arrow"} <= set(kinds.classes)
    assert kinds.classes == sorted(set(kinds.classes))
    for i in range(len(kinds)):
        told = kinds.source.texts(int(kinds.rows[i]))
        assert {kind(name) for name in told} == {kinds.classes[kinds.labels[i]]}
    assert all("{}" in template for template in glyphs.TEMPLATES)
