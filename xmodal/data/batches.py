"""Batches by step: which rows, which caption, which view, and what stands in for a row that can't be read.

All of it is a function of the seed and the step, so workers, processes and restarts change nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xmodal.data.augment import DRAWS
from xmodal.data.order import CAPTION, draws, positions_of_step, shuffle, steps_per_epoch
from xmodal.data.source import Source
from xmodal.data.stable_id import stable_id
from xmodal.data.stand_ins import Skipped, read_pictures
from xmodal.errors import InputError


class Trained(Protocol):
    """What a loop and a run ask of the data that is trained on; the rest is between the data and its batches."""

    name: str

    @property
    def dropped(self) -> Mapping[str, int]: ...
    def __len__(self) -> int: ...
    def key(self, row: int, /) -> str: ...
    def fingerprint(self) -> str: ...


class Steps(Protocol):
    """Batches by step, as the loop takes them."""

    global_batch: int
    steps_per_epoch: int

    @property
    def source(self) -> Trained: ...
    def __getitem__(self, step: int, /) -> tuple[dict[str, Tensor], list[Skipped]]: ...


class Batches(Dataset):
    """Step -> this process's part of the global batch, and the rows that were skipped for it.

    part: first and last row (excluded) of the global batch that this process takes.
    prepare_images: pictures and draws (b, DRAWS) -> (b, 3, h, w) uint8; its `decoders`, where it has them, read the
    files (see `xmodal.data.augment`). tokenize: (b) strings -> (b, l) long.
    captions: how many of a row's texts are in the batch; with 1 the texts are (b, l), with k (b, k, l).
    """

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        part: tuple[int, int],
        seed: int,
        prepare_images: Callable[[Sequence[Any], np.ndarray], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        captions: int = 1,
    ) -> None:
        self.source, self.global_batch, self.part, self.seed = source, batch, part, seed
        self.prepare_images, self.tokenize, self.captions = prepare_images, tokenize, captions
        self.steps_per_epoch = steps_per_epoch(len(source), batch)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        """A flat dict: image (b, 3, h, w) uint8, text (b, l) or (b, k, l), text_id (b,) or (b, k), image_id and row
        (b,) long."""
        n = len(self.source)
        epoch, positions = positions_of_step(step, n, self.global_batch, self.part)
        rows = shuffle(positions, n, self.seed, epoch)
        numbers = draws(self.seed, epoch, positions, DRAWS)
        decoders: Any = getattr(self.prepare_images, "decoders", None)
        pictures, rows, skipped = read_pictures(
            *(self.source, rows, positions, epoch, self.seed), decoders=decoders and decoders(numbers)
        )
        k = self.captions
        choices = draws(self.seed, epoch, positions, k, CAPTION)  # (b, k)
        texts = [
            text
            for row, numbers in zip(rows.tolist(), choices, strict=True)
            for text in chosen(self.source.texts(row), numbers)
        ]
        tokens = self.tokenize(texts)
        text_id = torch.tensor([stable_id(text) for text in texts], dtype=torch.long)
        if k > 1:
            tokens, text_id = tokens.unflatten(0, (-1, k)), text_id.view(-1, k)
        batch = {
            "image": self.prepare_images(pictures, numbers),
            "text": tokens,
            "image_id": torch.from_numpy(self.source.image_id[rows]),
            "text_id": text_id,
            "row": torch.from_numpy(rows),
        }
        return batch, skipped


def chosen(texts: Sequence[str], numbers: np.ndarray) -> list[str]:
    """Texts (m) and numbers (k,) in [0, 1) -> k of the texts, none twice before each was taken once."""
    rest: list[str] = []
    found = []
    for u in numbers.tolist():
        rest = rest or list(texts)
        found.append(rest.pop(int(u * len(rest))))
    return found


def loader(
    batches: Steps, start: int, stop: int, workers: int = 0
) -> Iterator[tuple[int, dict[str, Tensor], list[Skipped]]]:
    """Steps start … stop − 1 in order, each with its batch and what was skipped for it."""
    steps = range(start, stop)
    reader = DataLoader(
        _Told(batches),
        sampler=steps,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for step, told in zip(steps, reader, strict=True):
        if isinstance(told, InputError):
            raise told
        batch, skipped = told
        yield step, batch, skipped


class _Told(Dataset):
    """Batches whose InputErrors come as values: torch would put a worker's traceback into the message for the user."""

    def __init__(self, batches: Steps) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]] | InputError:
        try:
            return self.batches[step]
        except InputError as error:
            return error


def start_worker(_: int) -> None:
    """Workers compute on one thread, and leave signals to a whole job to the process that waits for them.

    The second SIGTERM is for them: it is how that process ends one that doesn't end by itself.
    """
    import signal

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


class Quarantine:
    """Rows that could not be read: listed in skipped.jsonl, counted by reason, and limited.

    limit: the fraction of rows that may be bad; one bad row is always allowed.
    """

    def __init__(self, path: Path, limit: float, rows: int, until: int = 0) -> None:
        """until: steps already done; rows of the list that came later are forgotten, as on a resume."""
        self.path, self.rows = path, rows
        self.limit = max(1, int(limit * rows))
        lines = map(_parsed, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
        self.lines = [line for line in lines if line and line["step"] <= until]

    def new(self, skipped: Sequence[Skipped], step: int) -> list[dict[str, Any]]:
        """Lines for those skipped that are not in the list yet."""
        seen = {line["row"] for line in self.lines}
        first = {one.row: one for one in reversed(skipped) if one.row not in seen}
        return [{"step": step, **asdict(one)} for one in first.values()]

    def take(self, lines: Sequence[dict[str, Any]], write: bool) -> None:
        """Put the new lines of all processes into the list, and into the file where `write` says so."""
        seen = {line["row"] for line in self.lines}
        for line in lines:
            if line["row"] not in seen:
                seen.add(line["row"])
                self.lines.append(line)
        if write:
            beside = self.path.with_name(self.path.name + ".tmp")  # a kill in between must not cost the lines of before
            beside.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            beside.replace(self.path)

    @property
    def counts(self) -> Counter[str]:
        """How many rows are bad for each reason."""
        return Counter(line["reason"] for line in self.lines)

    def check(self) -> None:
        """Raise InputError when more rows are bad than allowed."""
        if len(self.lines) > self.limit:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in self.counts.most_common(3))
            raise InputError(
                f"{len(self.lines)} of {self.rows} samples can't be read, more than --max-bad-fraction allows: "
                f"{reasons}.\nThey are listed in {self.path}."
            )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # torn by a kill
        return None
