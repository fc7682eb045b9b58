"""Embed with a locked tower once, before training: what its backbone makes of every picture or every text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import distributed
from xmodal.data.features import FeaturesOfImages, FeaturesOfTexts
from xmodal.data.source import Source, captions
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError


def images_once(towers: TwoTower, source: Source, batch_size: int = 256) -> FeaturesOfImages:
    """Each row's picture as evaluation sees it through the image backbone; every process must call it, and does a part.

    Raises InputError if no picture can be read.
    """
    bad: dict[int, BadSample] = {}

    def embed(some: Sequence[int]) -> Tensor:
        pictures = source.images(np.asarray(some))
        bad.update({row: p for row, p in zip(some, pictures, strict=True) if isinstance(p, BadSample)})
        seen = [_blank(towers) if isinstance(p, BadSample) else p for p in pictures]
        return towers.features(image=towers.preparation.stack(seen).to(towers.device))

    features = _embed(towers, range(len(source)), batch_size, embed)
    everywhere = {row: p for part in distributed.gather_objects(bad) for row, p in part.items()}
    if len(everywhere) == len(source):
        raise InputError(f"No image of {source.name} can be read: {next(iter(everywhere.values()))}.")
    return FeaturesOfImages(source, features, everywhere)


def texts_once(towers: TwoTower, source: Source, batch_size: int = 256) -> FeaturesOfTexts:
    """Every text of a source through the text backbone; every process must call it, and does a part."""
    texts = list(dict.fromkeys(captions(source)))

    def embed(some: Sequence[str]) -> Tensor:
        return towers.features(text=towers.tokenizer(some).to(towers.device))

    return FeaturesOfTexts(texts, _embed(towers, texts, batch_size, embed))


@torch.no_grad()
def _embed(towers: TwoTower, items: Any, batch_size: int, embed: Callable[[Any], Tensor]) -> Tensor:
    """The features of all items on every process, (n, width) float32 on the CPU."""
    was_training = towers.training
    towers.eval()
    here = distributed.part(len(items))
    parts = [
        embed(items[a : min(a + batch_size, here.stop)]).float().cpu() for a in range(here.start, here.stop, batch_size)
    ]
    towers.train(was_training)
    return distributed.gather_parts(parts)


def _blank(towers: TwoTower) -> np.ndarray:
    return np.zeros((towers.preparation.height, towers.preparation.width), dtype=np.uint8)
