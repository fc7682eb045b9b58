"""Read every picture and caption of a data set as training would, and list what can't be read.

    xmodal data check captions.csv --output bad.jsonl
    xmodal data check "shards/{00000..00009}.tar" --workers 8

Exit status: 0 if training would go through with it, 1 if more is bad than --max-bad-fraction.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    from xmodal.data.source import Source

TOGETHER = 64  # pictures that a worker reads at a time


@dataclass(frozen=True, kw_only=True)
class Config:
    data: tyro.conf.Positional[str]
    """A table, a JSON, a folder, parquet or tar shards, here or at an address, or hf-dataset:NAME[,streaming]."""
    split: str | None = None
    """The rows of this split; without it all."""
    output: Path | None = None
    """Where to write the bad samples, one JSON object a line."""
    workers: int | None = None
    """Processes that read; if not given, one for each core."""
    max_bad_fraction: float = 0.01
    """How many may be bad; training's own limit."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    caption_column: str | None = None
    """The column or JSON key of captions, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""

    def check(self) -> None:
        require(self, "workers", lambda v: v >= 0, "0 or more")
        require(self, "max_bad_fraction", lambda v: 0 <= v <= 1, "between 0 and 1")


class Reasons:
    """Number of a lot -> the rows in it that can't be read, with the reason and what more there is to say."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return -(-len(self.source) // TOGETHER)

    def __getitem__(self, lot: int) -> list[tuple[int, str, str]]:
        import numpy as np

        rows = np.arange(lot * TOGETHER, min(len(self.source), (lot + 1) * TOGETHER))
        found = zip(rows.tolist(), self.source.images(rows), strict=True)
        return [(row, bad.reason, str(bad)) for row, bad in found if isinstance(bad, BadSample)]


def run(config: Config) -> tuple[int, list[dict[str, Any]]]:
    """Read, print, write; returns how many rows there are and the bad ones: row, key, reason, detail."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from xmodal.data.source import Columns, open_source
    from xmodal.data.workers import start_method, start_worker

    columns = Columns(config.image_column, config.caption_column, config.split_column)
    source = open_source(config.data, config.split, columns)
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    reader = DataLoader(
        Reasons(source),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
        multiprocessing_context=start_method(source, workers),
    )
    bad: list[dict[str, Any]] = []
    with tqdm(total=len(source), unit=" pictures", disable=None) as bar:
        for reasons in reader:
            bad += [{"row": r, "key": source.key(r), "reason": why, "detail": more} for r, why, more in reasons]
            bar.update(min(TOGETHER, len(source) - bar.n))
    for lack, n in source.dropped.items():
        if n:
            print(f"Left out of {source.name}: {n:,} with {lack}.")
    counts = Counter(one["reason"] for one in bad)
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.most_common())
    reasons = f": {reasons}" if bad else ""
    print(f"{source.name}: {len(source):,} pictures with captions, {len(bad):,} can't be read{reasons}.")
    if config.output is not None:
        _write(config.output, bad)
        print(f"The list is in {config.output}.")
    return len(source), bad


def _write(path: Path, bad: list[dict[str, Any]]) -> None:
    from xmodal.durable import replace_text
    from xmodal.embedding.parts import plain

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, "".join(plain(json.dumps(one, ensure_ascii=False)) + "\n" for one in bad))
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, argv, prog="xmodal data check")
    rows, bad = run(config)
    return int(len(bad) > max(1, int(config.max_bad_fraction * rows)))


if __name__ == "__main__":
    sys.exit(guard(main))
