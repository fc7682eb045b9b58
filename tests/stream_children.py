"""What children of tests/forks.py do with tables that are streamed. Each returns an exit status."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def killed_in_the_spool(folder: str) -> int:
    """Dies half-way through a table."""
    import pyarrow as pa

    from xmodal.data.spool import Spool

    schema = pa.schema({"picture": pa.large_binary()})

    def half() -> Iterator[Any]:
        yield pa.record_batch([pa.array([bytes(200_000)], pa.large_binary())], schema=schema)
        os.kill(os.getpid(), signal.SIGKILL)

    Spool(Path(folder)).table("k", schema, 2, half)
    return 1


def read_steps(spec: str, output: str, steps: Sequence[int], part: tuple[int, int], window: int) -> int:
    """Writes the captions of each of some steps, as {step: [captions]}, and the value that their pictures show."""
    from xmodal.data import row_groups
    from xmodal.data.batches import Batches
    from xmodal.data.source import open_source

    row_groups.WINDOW = window
    data = Batches(open_source(spec), batch=6, part=part, seed=0, prepare_images=red, tokenize=numbers)
    found = {}
    for step in steps:
        told, skipped = data[step]
        assert not skipped
        assert told["image"].flatten().tolist() == told["text"].flatten().tolist()
        found[step] = told["text"].flatten().tolist()
    Path(output).write_text(json.dumps(found))
    for thread in threading.enumerate():
        if thread.name == "fetch ahead":
            thread.join(60)  # what a process has begun when it ends, another one fetches again
    return 0


def red(pictures: Sequence[Any], draws: np.ndarray) -> torch.Tensor:
    """(b, 1), how red each is."""
    return torch.tensor([[int(np.asarray(picture)[0, 0, 0])] for picture in pictures])


def numbers(texts: Sequence[str]) -> torch.Tensor:
    """(b, 1), the number that ends each."""
    return torch.tensor([[int(text.split()[-1])] for text in texts])
