"""From a part of an input to its rows, which depend on that part, the model and the setting, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import tee
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xmodal.data.workers import start_method, start_worker
from xmodal.embedding.inputs import Input, Kind, Part
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.side_by_side import side_by_side
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError

T = TypeVar("T")
Model = TwoTower | SentenceEncoder
TEXTS_OF_A_DUAL_ENCODER, PICTURES = 64, 32  # that go through the model at a time
SIZE = {"text": 4096, "image": 512}  # rows of a part: what a kill costs at most


@dataclass(frozen=True)
class Setting:
    """What else makes the rows what they are. batch_size None: as the model thinks fast."""

    batch_size: int | None = None
    precision: str = "fp32"
    normalize: bool = True
    prompt_name: str | None = None


@dataclass(frozen=True)
class Embedded:
    """Rows (n, d) float32 of those items of a part that could be read; kept: (n,) which; skipped: why others not."""

    part: Part
    rows: np.ndarray
    kept: np.ndarray
    skipped: dict[int, str]
    truncated: int = 0  # texts that were longer than the model takes, where it tells


def embed(model: Model, source: Input, parts: Iterable[Part], setting: Setting, workers: int = 0) -> Iterator[Embedded]:
    """Each part's rows, in order. workers: processes that decode pictures. InputError for what the model can't."""
    check(model, source.kind, setting)
    if source.kind == "text":
        return (_texts(model, part, setting) for part in parts)
    assert isinstance(model, TwoTower)
    return _pictures(model, source, parts, setting, workers)


def check(model: Model, kind: Kind, setting: Setting) -> None:
    """InputError for pictures without an image tower, for arithmetic the device hasn't, and for an unknown prompt."""
    from xmodal.distributed import computes_bf16

    if kind == "image" and not isinstance(model, TwoTower):
        raise InputError("The model takes texts alone, and the input is pictures.")
    if setting.precision == "bf16" and not computes_bf16():
        raise InputError("--precision bf16: this device doesn't compute in bfloat16; leave fp32.")
    if setting.prompt_name is not None:
        prompts = {} if isinstance(model, TwoTower) else model.description.get("prompts") or {}
        if setting.prompt_name not in prompts:
            raise InputError(f"The model has no prompt {setting.prompt_name!r}; it has {', '.join(prompts) or 'none'}.")
    if isinstance(model, TwoTower) and not setting.normalize:
        raise InputError("--no-normalize is for sentence encoders: a dual encoder's rows are unit.")


def embed_some(model: Model, texts: Sequence[str], setting: Setting) -> np.ndarray:
    """A few texts -> (n, d) float32."""
    if isinstance(model, SentenceEncoder):
        return model.encode(
            texts,
            prompt_name=setting.prompt_name,
            batch_size=setting.batch_size,
            normalize_embeddings=setting.normalize,
            precision=setting.precision,
        )

    def rows(some: Sequence[str]) -> Tensor:
        with _autocast(model, setting):
            return model.encode_text(some)

    batches = _batches(texts, setting.batch_size or TEXTS_OF_A_DUAL_ENCODER)
    return torch.cat([model.encode_text([]), *side_by_side(rows, batches, model.device)]).numpy()


def embed_pictures(model: TwoTower, pixels: Sequence[Tensor], setting: Setting) -> np.ndarray:
    """A few prepared pictures, (3, h, w) uint8 each -> (n, d) float32."""

    def rows(some: Sequence[Tensor]) -> Tensor:
        with _autocast(model, setting):
            return model(image=torch.stack(list(some)).to(model.device))["image"].float().cpu()

    batches = _batches(pixels, setting.batch_size or PICTURES)
    return torch.cat([model.encode_image([]), *side_by_side(rows, batches, model.device)]).numpy()


def _texts(model: Model, part: Part, setting: Setting) -> Embedded:
    before = getattr(model, "truncated", 0)
    rows = embed_some(model, part.items, setting)
    return Embedded(part, rows, np.arange(len(rows)), {}, getattr(model, "truncated", 0) - before)


def _pictures(
    model: TwoTower, source: Any, parts: Iterable[Part], setting: Setting, workers: int
) -> Iterator[Embedded]:
    """Workers go on to the next parts' pictures while the model is at one's; a batch never spans two parts."""
    ours, theirs = tee(parts)
    size = setting.batch_size or PICTURES
    reader: Iterator[tuple[Tensor, list[str | None]]] = iter(
        DataLoader(
            _Prepared(model, source),
            sampler=(
                (part.first + size * number, some)
                for part in theirs
                for number, some in enumerate(_batches(part.items, size))
            ),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=start_worker if workers else None,
            multiprocessing_context=start_method(source, workers),
            pin_memory=torch.cuda.is_available(),
        )
    )

    def rows(read: tuple[Tensor, list[str | None]]) -> tuple[Tensor, list[str | None]]:
        pixels, problems = read
        if not len(pixels):
            return none, problems
        with _autocast(model, setting):
            return model(image=pixels.to(model.device, non_blocking=True))["image"].float().cpu(), problems

    none = model.encode_image([])  # rows of no pictures, as wide as all
    embedded = side_by_side(rows, reader, model.device)
    for part in ours:
        found = [next(embedded) for _ in _batches(part.items, size)]
        problems = [problem for _, some in found for problem in some]
        kept = np.array([i for i, problem in enumerate(problems) if problem is None], dtype=np.int64)
        skipped = {i: problem for i, problem in enumerate(problems) if problem is not None}
        yield Embedded(part, torch.cat([rows for rows, _ in found]).numpy(), kept, skipped)


class _Prepared(Dataset):
    """The first row and names (n) -> pixels of those that can be read, (≤ n, 3, h, w) uint8, and why others can't."""

    def __init__(self, model: TwoTower, source: Any) -> None:
        self.preparation, self.source = model.preparation, source

    def __getitem__(self, some: tuple[int, Sequence[str]]) -> tuple[Tensor, list[str | None]]:
        pixels, problems = [], []
        for picture in self.source.pictures(*some):
            try:
                if isinstance(picture, BadSample):
                    raise picture
                pixels.append(self.preparation(picture))
                problems.append(None)
            except BadSample as problem:
                problems.append(problem.reason)
        return torch.stack(pixels) if pixels else self.preparation.stack([]), problems


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[a : a + size] for a in range(0, len(items), size))


def _autocast(model: TwoTower, setting: Setting) -> Any:
    return torch.autocast(model.device.type, torch.bfloat16) if setting.precision == "bf16" else nullcontext()
