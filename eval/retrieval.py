"""Retrieval between images and texts, both directions, of any model on any pairs.

Each figure comes with its protocol and a 95 % interval.

    xmodal eval retrieval runs/clip --data glyphs/unseen_names
    xmodal eval retrieval open_clip:ViT-B-32/openai --data captions.csv --split test --json scores.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """A run folder, or open_clip:MODEL[/PRETRAINED] and the other forms of `xmodal list`."""
    data: str
    """A table of images and captions (CSV, TSV), or a built-in set and test such as glyphs/unseen_names."""
    split: str | None = None
    """The split of a table with a split column; without it test if there is one, else val, else all rows."""
    ks: tuple[int, ...] = (1, 5, 10)
    """The k of recall at k."""
    batch_size: int = 256
    """Images or texts that are encoded at a time."""
    image_column: str | None = None
    """The column of image paths, if it has no usual name."""
    caption_column: str | None = None
    """The column of captions, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""
    json: Path | None = None
    """Write protocol and scores here as well."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")
        require(self, "ks", lambda v: v and min(v) >= 1, "numbers of at least 1")


def run(config: Config) -> dict[str, Any]:
    """Embed, score, print; returns the protocol and the scores."""
    from xmodal import distributed
    from xmodal.data.source import Columns, held_out_split, open_source
    from xmodal.encoders import load_towers
    from xmodal.evaluators.evaluate import evaluate_retrieval
    from xmodal.evaluators.scores import print_table, write_scores

    accelerator = distributed.start("fp32")
    columns = Columns(config.image_column, config.caption_column, config.split_column)
    split = config.split or held_out_split(config.data, columns)
    source = open_source(config.data, split, columns)
    model = load_towers(config.model, device=accelerator.device)
    protocol, scores = evaluate_retrieval(model, source, config.ks, config.batch_size)
    protocol = {"model": config.model, **protocol}
    if distributed.is_first():
        if config.json:
            write_scores(config.json, protocol, scores)
        print_table(protocol, scores)
    return {"protocol": protocol, "scores": scores}


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval retrieval"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
