"""Batches by step: which rows, which caption, which view, and what stands in for a row that can't be read.

All of it is a function of the seed and the step, so workers, processes and restarts change nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.augment import DRAWS, Crop
from xmodal.data.cut import cuts_of_file
from xmodal.data.decode import Decoder
from xmodal.data.order import CAPTION, VIEW, draws, positions_of_step, steps_per_epoch
from xmodal.data.orders import order_of
from xmodal.data.source import Source
from xmodal.data.stable_id import stable_id
from xmodal.data.stand_ins import Skipped, read_pictures
from xmodal.data.views import Views
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
    captions: how many of a row's texts are in the batch; with 1 the texts are (b, l), with k (b, k, l). With "all" k is
    the most that one of these rows has, and text_there (b, k) bool says which of the places are filled.
    views: what else is made of every picture.
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
        captions: int | Literal["all"] = 1,
        views: Views | None = None,
    ) -> None:
        self.source, self.global_batch, self.part, self.seed = source, batch, part, seed
        self.prepare_images, self.tokenize, self.captions, self.views = prepare_images, tokenize, captions, views
        self.order = order_of(source)
        self.steps_per_epoch = steps_per_epoch(len(self.order), batch)

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        """A flat dict: image (b, 3, h, w) uint8, maybe views (b, v, 3, h, w), text (b, l) or (b, k, l), text_id (b,) or
        (b, k), image_id and row (b,) long."""
        epoch, positions = positions_of_step(step, len(self.order), self.global_batch, self.part)
        rows = self.order.rows(positions, self.seed, epoch)
        numbers = draws(self.seed, epoch, positions, DRAWS)
        of_views = None if self.views is None else draws(self.seed, epoch, positions, self.views.draws, VIEW)
        decoders = self._decoders(numbers, of_views)
        pictures, rows, skipped = read_pictures(self.source, rows, positions, epoch, self.seed, decoders)
        told = self._texts(rows, positions, epoch)
        texts = [text for each in told for text in each]
        tokens, text_id = self.tokenize(texts), torch.tensor([stable_id(text) for text in texts], dtype=torch.long)
        there = {}
        if isinstance(self.captions, str):  # "all"
            filled = _filled([len(each) for each in told])
            tokens, text_id, there = _placed(tokens, filled), _placed(text_id, filled), {"text_there": filled}
        elif self.captions > 1:
            tokens, text_id = tokens.unflatten(0, (-1, self.captions)), text_id.view(-1, self.captions)
        batch = {
            "image": self.prepare_images([p[0] if isinstance(p, list) else p for p in pictures], numbers),
            "text": tokens,
            "image_id": torch.from_numpy(self.source.image_id[rows]),
            "text_id": text_id,
            **there,
            "row": torch.from_numpy(rows),
        }
        if self.views is not None and of_views is not None:
            batch |= self.views([p[1:] if isinstance(p, list) else p for p in pictures], of_views)
        return batch, skipped

    def _decoders(self, numbers: np.ndarray, of_views: np.ndarray | None) -> Sequence[Decoder] | None:
        """What reads the files of pictures: with views into a list, the image's first; None reads them whole."""
        if self.views is None or of_views is None:
            decoders: Any = getattr(self.prepare_images, "decoders", None)
            return decoders and decoders(numbers)
        shown = self.views.shown(of_views)
        if shown is None or not isinstance(self.prepare_images, Crop):
            return None
        own = map(self.prepare_images.shown, numbers)
        return [
            partial(cuts_of_file, cuts=[one, *several], exact=self.views.exact)
            for one, several in zip(own, shown, strict=True)
        ]

    def _texts(self, rows: np.ndarray, positions: np.ndarray, epoch: int) -> list[Sequence[str]]:
        """The texts of rows (b,) that are in the batch."""
        if isinstance(self.captions, str):
            return [self.source.texts(row) for row in rows.tolist()]
        choices = draws(self.seed, epoch, positions, self.captions, CAPTION)  # (b, k)
        return [chosen(self.source.texts(row), u) for row, u in zip(rows.tolist(), choices, strict=True)]


def chosen(texts: Sequence[str], numbers: np.ndarray) -> list[str]:
    """Texts (m) and numbers (k,) in [0, 1) -> k of the texts, none twice before each was taken once."""
    rest: list[str] = []
    found = []
    for u in numbers.tolist():
        rest = rest or list(texts)
        found.append(rest.pop(int(u * len(rest))))
    return found


def _filled(counts: Sequence[int]) -> Tensor:
    """How many texts each row has (b) -> which of its places are filled, (b, k) bool, k the most of them."""
    return torch.arange(max(counts, default=0)) < torch.tensor(counts, dtype=torch.long)[:, None]


def _placed(values: Tensor, filled: Tensor) -> Tensor:
    """Values (m, …) in the m places that are filled, zeros in the others: (b, k, …)."""
    places = values.new_zeros(*filled.shape, *values.shape[1:])
    places[filled] = values
    return places


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
