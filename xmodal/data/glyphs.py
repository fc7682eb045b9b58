"""`glyphs`: pictures of characters and their Unicode names, drawn when needed; nothing is downloaded or stored.

The typefaces (DejaVu, STIX) ship inside matplotlib, the names come from Python's `unicodedata`.

Protocol
- Characters without a name, controls, separators and characters that draw nothing are left out.
- A name is held out of training when the first eight bytes of its sha256 are divisible by ten.
- Training: the four DejaVu Sans and the four DejaVu Sans Mono faces, names not held out.
- Pictures with equal pixels are one row with all their names (LATIN CAPITAL LETTER A, GREEK CAPITAL LETTER ALPHA).
- Tests, each with its own names as the gallery:
  `unseen_typeface` DejaVuSerif, names of the training set; `unseen_names` DejaVuSans, names held out;
  `other_family` STIXGeneral, names of the training set.
- A test's picture may equal one of training: DejaVu's faces share braille, box drawings and many arrows, and an
  unseen name may be another character of the same form. So it is for about a tenth of the first two tests.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xmodal.data.decode import Decoder
from xmodal.errors import BadSample

TRAIN_FACES = tuple(
    family + style for family in ("DejaVuSans", "DejaVuSansMono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")
)
TESTS = {
    "unseen_typeface": ("DejaVuSerif", False),
    "unseen_names": ("DejaVuSans", True),
    "other_family": ("STIXGeneral", False),
}
SIDE = 64  # pixels a side of a drawn picture; the model scales them to its own size
EM = 48  # pixels an em: capitals with an accent and descenders both fit into SIDE
BASELINE = 50  # pixels from the top: one for all, since height tells a capital from a small letter

# What a character is, by the words its Unicode name begins with or holds; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "combining": ("COMBINING ",),
    "modifier": ("MODIFIER ", "SUPERSCRIPT ", "SUBSCRIPT "),
    "mathematical": ("MATHEMATICAL ", "DOUBLE-STRUCK ", "SCRIPT ", "BLACK-LETTER "),
    "latin": ("LATIN ",),
    "greek": ("GREEK ",),
    "cyrillic": ("CYRILLIC ",),
    "armenian": ("ARMENIAN ",),
    "hebrew": ("HEBREW ",),
    "arabic": ("ARABIC ", "EXTENDED ARABIC"),
    "georgian": ("GEORGIAN ",),
    "lao": ("LAO ",),
    "nko": ("NKO ",),
    "tifinagh": ("TIFINAGH ",),
    "canadian syllabics": ("CANADIAN SYLLABICS ",),
    "ogham": ("OGHAM ",),
    "braille pattern": ("BRAILLE PATTERN ",),
    "box drawings": ("BOX DRAWINGS ",),
    "hexagram": ("HEXAGRAM ",),
    "tetragram": ("TETRAGRAM ",),
    "domino tile": ("DOMINO TILE ",),
    "playing card": ("PLAYING CARD ",),
    "circled": ("CIRCLED ", "NEGATIVE CIRCLED ", "DINGBAT "),
    "roman numeral": ("ROMAN NUMERAL ", "SMALL ROMAN NUMERAL "),
    "fraction": ("VULGAR FRACTION ",),
    "chess": ("WHITE CHESS ", "BLACK CHESS "),
}
# Most names are of letters, and end in one: "latin small letter a" lies nearer to them than "latin" alone.
TEMPLATES = tuple(f"{{}} {size} letter {letter}" for size in ("small", "capital") for letter in ascii_lowercase)


def kind(name: str) -> str | None:
    """The zero-shot class of a Unicode name: its script or kind, or None where it belongs to none of KINDS."""
    for label, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return label
    words = name.split()
    return "arrow" if any(w.startswith("ARROW") or w.endswith("ARROW") for w in words) else None


def held_out(name: str) -> bool:
    """Whether a name is never seen in training: a tenth of all, by sha256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


@cache
def draw(face: str) -> tuple[list[str], np.ndarray]:
    """All characters of a face that have a name and draw something: names (n) and pictures (n, SIDE, SIDE) uint8.

    Black ink on white paper, a common baseline, centred from left to right; what is wider or taller than the
    picture is drawn smaller until it fits.
    """
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path

    path = Path(get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    with TTFont(path, lazy=True) as font:
        characters = sorted(chr(code) for code in font.getBestCmap() or {})
    basic = ImageFont.Layout.BASIC  # one character needs no shaping, and raqm is not everywhere
    fonts = {size: ImageFont.truetype(str(path), size, layout_engine=basic) for size in range(8, EM + 1)}
    names, pictures = [], []
    for character in characters:
        name = unicodedata.name(character, "")
        if not name or unicodedata.category(character) in ("Cc", "Zs", "Zl", "Zp"):
            continue
        picture = _draw_one(character, fonts)
        if picture is not None:
            names.append(name)
            pictures.append(picture)
    return names, np.stack(pictures)


def _draw_one(character: str, fonts: dict[int, ImageFont.FreeTypeFont]) -> np.ndarray | None:
    size = EM
    left, top, right, bottom = fonts[size].getbbox(character, anchor="ls")
    if right <= left or bottom <= top:
        return None
    extent = max(right - left, bottom - top)
    if extent > SIDE:
        size = max(min(fonts), int(EM * SIDE / extent))
        left, top, right, bottom = fonts[size].getbbox(character, anchor="ls")
    x = (SIDE - (right - left)) / 2 - left
    y = min(max(BASELINE, -top), SIDE - bottom)  # moved only as far as it must to stay inside
    image = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(image).text((x, y), character, fill=0, font=fonts[size], anchor="ls")
    pixels = np.asarray(image)
    return pixels if pixels.min() < 128 else None


class Glyphs:
    """A data source: one row a picture, with all names of the characters that are drawn with these pixels.

    split: "train" or one of TESTS.
    """

    photographs = False

    def __init__(self, split: str = "train") -> None:
        self.dropped: Mapping[str, int] = {}  # what is left out is left out by the protocol
        self.name = "glyphs" if split == "train" else f"glyphs/{split}"
        faces, unseen = (TRAIN_FACES, False) if split == "train" else ((TESTS[split][0],), TESTS[split][1])
        known = split != "train" and not unseen  # only names that training has seen
        wanted = {name for face in TRAIN_FACES for name in draw(face)[0]} if known else None
        rows: dict[bytes, tuple[np.ndarray, list[str], str]] = {}
        for face in faces:
            for name, picture in zip(*draw(face), strict=True):
                if held_out(name) != unseen or (wanted is not None and name not in wanted):
                    continue
                _, names, _ = rows.setdefault(picture.tobytes(), (picture, [], f"{face}/{name}"))
                if name not in names:
                    names.append(name)
        self.pictures = np.stack([picture for picture, _, _ in rows.values()])  # (n, SIDE, SIDE) uint8
        self.names = [names for _, names, _ in rows.values()]
        self.keys = [key for _, _, key in rows.values()]
        digests = (hashlib.sha256(pixels).digest()[:8] for pixels in rows)
        self.image_id = np.array([int.from_bytes(d, "big", signed=True) for d in digests], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        """The pictures of rows, (SIDE, SIDE) uint8 each; none is ever bad."""
        return list(self.pictures[rows])

    def texts(self, row: int) -> list[str]:
        return self.names[row]

    def key(self, row: int) -> str:
        return self.keys[row]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.sort(self.image_id).tobytes())
        digest.update("\n".join(name for names in self.names for name in names).encode())
        return digest.hexdigest()


class Kinds:
    """The pictures of a test whose names agree on one of KINDS, with the kind as their class."""

    def __init__(self, split: str) -> None:
        self.source = Glyphs(split)
        self.name = f"{self.source.name}, kinds"
        found = [{kind(name) for name in names} for names in self.source.names]
        self.rows = np.array([row for row, kinds in enumerate(found) if len(kinds) == 1 and None not in kinds])
        own = [str(next(iter(found[row]))) for row in self.rows]
        self.classes = sorted(set(own))
        self.labels = np.array([self.classes.index(name) for name in own])
        self.image_id = self.source.image_id[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return self.source.images(self.rows[rows], decoders)


def versions() -> str:
    """What the pictures and names depend on, for a score's protocol."""
    import matplotlib
    from PIL import features

    return (
        f"matplotlib {matplotlib.__version__}, FreeType {features.version('freetype2')}, "
        f"Unicode {unicodedata.unidata_version}, Python {sys.version_info.major}.{sys.version_info.minor}"
    )
