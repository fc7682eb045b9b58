"""What the tests of a run hand to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from xmodal.errors import BadSample
from xmodal.evaluators.embed import Embedded
from xmodal.evaluators.scores import Scores


class Shown(Protocol):
    """As much of a data source as it takes to show its rows."""

    def images(self, rows: np.ndarray, /) -> Sequence[Image.Image | np.ndarray | BadSample]: ...
    def key(self, row: int, /) -> str: ...


@dataclass(frozen=True)
class Evaluated:
    """A retrieval test: where its pictures come from, and the embeddings that were scored."""

    source: Shown
    embedded: Embedded


@dataclass(frozen=True)
class Classified:
    """A zero-shot test: names of the classes (c), and the confusion matrix (c, c), right class by row."""

    classes: Sequence[str]
    confusion: np.ndarray


@dataclass(frozen=True)
class Before:
    """The same tests with the model as it was before training, under the same names."""

    scores: Scores
    evaluated: Mapping[str, Evaluated | Classified] = field(default_factory=dict)


def same_questions(now: Embedded, then: Embedded) -> bool:
    """Whether two embeddings are of the same pictures and texts in the same order, so that queries can be compared.

    They may differ where a picture could be read one time only.
    """
    return now.texts == then.texts and np.array_equal(now.rows, then.rows) and np.array_equal(now.pairs, then.pairs)
