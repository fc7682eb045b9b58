"""From a model and a data source to the arrays that metrics take; every process embeds its part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xmodal import distributed, stopping
from xmodal.data.source import Source
from xmodal.errors import BadSample, InputError


class DualEncoder(Protocol):
    """All that an evaluation asks of a model; other libraries' models fit it as they are or with a line around them."""

    def encode_image(self, images: Any, /) -> Any: ...
    def encode_text(self, texts: Any, /) -> Any: ...


@dataclass(frozen=True)
class Embedded:
    """Unique pictures and unique texts, and what belongs together; the same on every process."""

    image: Tensor  # (n, d) unit
    text: Tensor  # (m, d) unit
    pairs: np.ndarray  # (p, 2) rows (image, text)
    rows: np.ndarray  # (n,) the source's row of each picture
    texts: list[str]  # (m)
    unreadable: int  # pictures that were left out

    @property
    def first_image(self) -> np.ndarray:
        """The first picture that each text belongs to, (m,)."""
        first = np.full(len(self.texts), len(self.image), dtype=np.int64)
        np.minimum.at(first, self.pairs[:, 1], self.pairs[:, 0])
        return first


def embed_pairs(model: DualEncoder, source: Source, batch_size: int = 256) -> Embedded:
    """Embed each picture (by image_id) and each text of a source once. Every process must call it.

    Pictures that can't be read are left out, and texts that belong to no other. Raises InputError if none is left.
    """
    rows = np.sort(np.unique(source.image_id, return_index=True)[1])
    image, readable, bad = embed_images(model, source.images, rows, batch_size)
    if not readable.any():
        raise InputError(f"No image of {source.name} can be read: {_reasons(bad)}.")
    rows = rows[readable]
    number = {int(source.image_id[row]): n for n, row in enumerate(rows)}
    texts: dict[str, int] = {}
    pairs = [
        (number[int(i)], texts.setdefault(text, len(texts)))
        for row, i in enumerate(source.image_id)
        if int(i) in number
        for text in source.texts(row)
    ]
    text = embed_texts(model, list(texts), batch_size)
    return Embedded(image, text, np.unique(np.array(pairs), axis=0), rows, list(texts), int((~readable).sum()))


def embed_images(
    model: DualEncoder, images: Callable[[np.ndarray], list[Any]], rows: np.ndarray, batch_size: int = 256
) -> tuple[Tensor, np.ndarray, Counter[str]]:
    """Rows (n,) -> unit rows of those that can be read (≤ n, d), which those are (n,) bool, and why others are not."""
    parts, readable, bad = [], [], Counter()
    for here in rounds(len(rows), batch_size):
        pictures = images(rows[here])
        good = [p for p in pictures if not isinstance(p, BadSample)]
        bad.update(p.reason for p in pictures if isinstance(p, BadSample))
        readable += [not isinstance(p, BadSample) for p in pictures]
        if good:
            parts.append(_unit(model.encode_image(good)))
    everywhere = [each for part in distributed.gather_objects(readable) for each in part]
    reasons = sum(distributed.gather_objects(bad), Counter())
    return distributed.gather_parts(parts), np.array(everywhere, dtype=bool), reasons


def embed_texts(model: DualEncoder, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Texts (m) -> unit rows (m, d)."""
    mine = rounds(len(texts), batch_size)
    return distributed.gather_parts([_unit(model.encode_text([texts[i] for i in here])) for here in mine if len(here)])


def rounds(n: int, size: int) -> Iterator[np.ndarray]:
    """This process's share of range(n), `size` at a time, in equally many rounds on every process; some may be empty.

    Between them the processes look whether the run was asked to stop. Raises Stopped.
    """
    here = np.arange(n)[distributed.part(n)]
    for start in range(0, -(-n // distributed.processes()), size):
        stopping.poll()
        yield here[start : start + size]


def _unit(rows: Any) -> Tensor:
    rows = torch.as_tensor(rows).detach().float().cpu()
    return torch.nn.functional.normalize(rows, dim=-1)


def _reasons(bad: Counter[str]) -> str:
    return ", ".join(f"{reason} ({n})" for reason, n in bad.most_common(3))
