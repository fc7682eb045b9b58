"""Retrieval between images and texts, both directions, of any model on any pairs.

Each figure comes with its protocol and a 95 % interval.

    xmodal eval retrieval runs/clip --data glyphs/unseen_names
    xmodal eval retrieval open_clip:ViT-B-32/openai --data captions.csv --split test --json scores.json
    xmodal eval retrieval open_clip:ViT-B-32/openai --data wds_flickr30k --protocol clip_benchmark
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """A run folder, or open_clip:MODEL[/PRETRAINED] and the other forms of `xmodal list`."""
    data: str
    """A table of images and captions (CSV, TSV) and the other forms of `xmodal data inspect`, a webdataset set of
    CLIP_benchmark (a folder with test/0.tar), or a built-in set and test such as glyphs/unseen_names."""
    split: str | None = None
    """The split of a table with a split column; without it test if there is one, else val, else all rows."""
    ks: tuple[int, ...] = (1, 5, 10)
    """The k of recall at k."""
    protocol: Literal["xmodal", "clip_benchmark"] = "xmodal"
    """clip_benchmark: that one's figures by its definitions, which are these to the last digit where no text is there
    twice and nothing is tied; `xmodal/evaluators/clip_benchmark.py` says where they differ."""
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
    from xmodal.data.clip_benchmark import is_set, read_captioned
    from xmodal.data.source import Columns, held_out_split, open_source
    from xmodal.encoders import load_towers
    from xmodal.evaluators import clip_benchmark, evaluate
    from xmodal.evaluators.scores import print_table, write_scores

    accelerator = distributed.start("fp32")
    columns = Columns(config.image_column, config.caption_column, config.split_column)
    theirs = config.protocol == "clip_benchmark"
    if theirs and is_set(Path(config.data)):
        source: Any = read_captioned(Path(config.data), config.split)
    else:
        source = open_source(config.data, config.split or held_out_split(config.data, columns), columns)
    model = load_towers(config.model, device=accelerator.device)
    judge = clip_benchmark if theirs else evaluate
    protocol, scores = judge.evaluate_retrieval(model, source, config.ks, config.batch_size)
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
