"""What pictures and captions a file, a folder or a dataset holds, and the command that trains on them.

xmodal data inspect captions.csv
xmodal data inspect FOLDER
xmodal data inspect "shards/{00000..00009}.tar"
xmodal data inspect "hf://datasets/ORG/NAME/data/train-*.parquet"
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require

if TYPE_CHECKING:
    from xmodal.data.source import Source

SAMPLE = 1000  # pictures whose sizes and bytes are looked at
EXAMPLES = 3
LETTERS = 100  # of a caption


@dataclass(frozen=True, kw_only=True)
class Config:
    data: tyro.conf.Positional[str]
    """A table, a JSON, a folder, parquet or tar shards, here or at an address, or hf-dataset:NAME[,streaming]."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    caption_column: str | None = None
    """The column or JSON key of captions, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""
    sample: int = SAMPLE
    """How many pictures' sizes and bytes are looked at, spread evenly; of tables at an address in four places."""

    def check(self) -> None:
        require(self, "sample", lambda v: v >= 1, "at least 1")


def run(config: Config) -> dict[str, Any]:
    """Look, print; returns what was found."""
    from xmodal.data.source import Columns, form_of, open_source, splits
    from xmodal.evaluators.scores import print_protocol

    columns = Columns(config.image_column, config.caption_column, config.split_column)
    form = form_of(config.data, columns)
    parts = {split: open_source(config.data, split, columns) for split in splits(config.data, columns) if split}
    parts = parts or {"": open_source(config.data, None, columns)}
    found: dict[str, Any] = {"data": config.data, "form": form}
    if "" not in parts:
        found["splits"] = {split: f"{len(source):,} pictures" for split, source in parts.items()}
    source = parts.get("train") or next(iter(parts.values()))
    found |= _of_texts(source)
    found |= _of_pictures(source, config.sample)
    if lost := {lack: n for lack, n in source.dropped.items() if n}:
        found["left out"] = ", ".join(f"{n:,} with {lack}" for lack, n in lost.items())
    found["examples"] = {
        source.key(row): " | ".join(_brief(text) for text in source.texts(row))
        for row in range(0, len(source), max(1, -(-len(source) // EXAMPLES)))
    }
    if "train" not in parts or not ({"val", "test"} & set(parts)):
        found["to evaluate on"] = "nothing; --val names other data"
    found["train on it"] = _command(config, source)
    print_protocol(found)
    return found


def _of_texts(source: Source) -> dict[str, Any]:
    """How many captions there are, and how many are said of more than one picture."""
    counts, each = Counter[str](), []
    for row in range(len(source)):
        texts = source.texts(row)
        each.append(len(texts))
        counts.update(set(texts))
    shared = sum(n > 1 for n in counts.values())
    letters = sorted(map(len, counts))
    found = {
        "pictures": f"{len(source):,}",
        "captions": f"{sum(each):,}, {_span(each)} a picture",
        "letters of a caption": f"{letters[len(letters) // 2]} in the middle, {letters[-1]:,} at most",
    }
    if shared:
        found["captions of more than one picture"] = f"{shared:,}: positives of all of them"
    return found


def _of_pictures(source: Any, sample: int) -> dict[str, Any]:
    """Sizes, equal ones and unreadable ones among some."""
    import numpy as np

    from xmodal.errors import BadSample

    n, some = len(source), getattr(source, "some", None)  # of what is far away those that are fetched together
    rows = some(sample) if some else np.unique(np.linspace(0, n - 1, min(sample, n)).round().astype(int))
    sides, bad, digests = [], Counter[str](), Counter[str]()
    for row in rows.tolist():
        picture = source.images(np.array([row]))[0]
        if isinstance(picture, BadSample):
            bad[picture.reason] += 1
            continue
        pixels = np.asarray(picture)
        sides.append(pixels.shape[1::-1])
        digests[hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()] += 1
    looked = "all" if len(rows) == len(source) else f"{len(rows):,}"
    found: dict[str, Any] = {}
    if sides:
        width, height = (_span([side[i] for side in sides]) for i in (0, 1))
        found["width × height"] = f"{width} × {height} pixels ({looked} looked at)"
    equal = sum(n - 1 for n in digests.values())
    found["equal pictures"] = f"{equal:,} of {looked} looked at show what another shows"
    if bad:
        found["unreadable"] = ", ".join(f"{n:,} {reason}" for reason, n in bad.items()) + f" of {looked} looked at"
    found["kind"] = "photographs" if source.photographs else "drawings or signs"
    return found


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _command(config: Config, source: Source) -> str:
    import shlex

    flags = [
        f"--{name.replace('_', '-')} {shlex.quote(value)}"
        for name in ("image_column", "caption_column", "split_column")
        if (value := getattr(config, name))
    ]
    small = len(source) < 100_000 and not source.photographs
    model = [] if small else ["--model open_clip:ViT-B-32/openai"]
    return " ".join(["xmodal train clip --data", shlex.quote(config.data), *flags, *model])


def _brief(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal data inspect"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
