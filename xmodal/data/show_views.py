"""What an augmentation makes of a picture: a sheet with the picture and some views of each kind.

xmodal data views photo.jpg --augment byol
xmodal data views photo.jpg --augment swav --image-size 96 --output sheet.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from xmodal.data.views import Branch

COLUMNS = 8  # views side by side, two rows of each kind
LEAST = 96  # pixels a side of what is shown: smaller views are enlarged, pixel by pixel
GAP, LINE, MARGIN = 6, 22, 16
INK, SOFT, PAPER = (24, 26, 31), (104, 110, 122), (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Config:
    image: tyro.conf.Positional[Path]
    """A picture."""
    augment: Literal[
        "simclr", "moco_v2", "byol", "barlow_twins", "swav", "clip", "photo", "drawing", "glyphs", "none"
    ] = "simclr"
    """Whose views."""
    image_size: int = 224
    """Pixels a side of a view. Views of up to 64 pixels are not blurred, and SimCLR's colours change half as much."""
    seed: int = 0
    """Of the random numbers."""
    output: Path = Path("views.png")
    """The sheet: a file of Pillow's that its name's end says, such as .png."""

    def check(self) -> None:
        require(self, "image_size", lambda v: 8 <= v <= 1024, "8 to 1024")
        require(self, "seed", lambda v: v >= 0, "0 or more")


def run(config: Config) -> Path:
    """Write the sheet; returns where it is."""
    import numpy as np

    from xmodal.data.decode import decode
    from xmodal.data.order import draws
    from xmodal.data.views import views
    from xmodal.encoders.preparation import Preparation

    try:
        picture = decode(config.image)
    except BadSample as problem:
        raise InputError(f"{config.image}: {problem}") from None
    of = views(config.augment, Preparation(config.image_size, config.image_size))
    shown = 2 * COLUMNS
    kinds: dict[str, list[np.ndarray]] = {}
    for key, several in of.branches.items():
        distinct = list(dict.fromkeys(several))
        for number, branch in enumerate(distinct):
            name = key if len(distinct) == 1 else f"{key.removesuffix('s')} {number + 1}"
            made = branch([picture] * shown, draws(config.seed, len(kinds), np.arange(shown), branch.draws))
            size = f"{several.count(branch)} of {made.shape[3]} × {made.shape[2]} pixels"
            kinds[f"{name}: {size}{_told(branch)}"] = list(made.permute(0, 2, 3, 1).numpy())
    sheet = _sheet(picture, f"{config.image.name}, views of {config.augment}", kinds)
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(config.output)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot write {config.output}: {error}") from None
    print(f"Wrote {config.output}, {sheet.width} × {sheet.height} pixels.")
    return config.output


def _told(branch: Branch) -> str:
    """The probabilities and strengths of a branch, in words."""
    from xmodal.data.views import Distort

    if not isinstance(branch, Distort):
        return ""
    low, high = branch.scale
    said = [f"area {low:g}–{high:g}"]
    said.append(f"jitter {branch.jittered:g} by {', '.join(f'{s:g}' for s in branch.jitter)}")
    said.append(f"grey {branch.grey:g}")
    said += [f"{name} {p:g}" for name, p in (("blur", branch.blur), ("solarise", branch.solarise)) if p]
    return " · " + " · ".join(said)


def _sheet(picture: Image.Image, title: str, kinds: dict[str, list[np.ndarray]]) -> Image.Image:
    """The picture at the top, below it for each kind a line of words and two rows of views."""
    from PIL import Image, ImageDraw

    sides = {name: _shown(views[0]) for name, views in kinds.items()}
    original = picture.copy()
    original.thumbnail((2 * max(sides.values()) + GAP, 2 * max(sides.values()) + GAP))
    rows = [2 * (side + GAP) for side in sides.values()]
    width = 2 * MARGIN + max(COLUMNS * (side + GAP) - GAP for side in sides.values())
    height = 2 * MARGIN + LINE + original.height + GAP + sum(LINE + MARGIN + row for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, large, small = ImageDraw.Draw(sheet), _font(15, bold=True), _font(13)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=large)
    top = MARGIN + LINE
    sheet.paste(original, (MARGIN, top))
    top += original.height + GAP
    for name, views in kinds.items():
        top += MARGIN
        pen.text((MARGIN, top), name, fill=SOFT, font=small)
        top += LINE
        side = sides[name]
        for number, view in enumerate(views):
            row, column = divmod(number, COLUMNS)
            shown = Image.fromarray(view).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + column * (side + GAP), top + row * (side + GAP)))
        top += 2 * (side + GAP)
    return sheet


def _shown(view: np.ndarray) -> int:
    """Pixels a side at which a view is shown: its own, or so many times as many that it can be seen."""
    side = view.shape[0]
    return side * max(1, -(-LEAST // side))


def _font(size: int, bold: bool = False) -> Any:
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    run(parse(Config, ["--output" if word == "-o" else word for word in given], prog="xmodal data views"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
