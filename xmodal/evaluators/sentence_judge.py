"""What a sentence encoder is judged on while it is trained and afterwards: sets of scored pairs, or topics of prose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xmodal.data.prose import Prose
from xmodal.data.sts import StsSet, StsSets, read_sts, read_sts_dev
from xmodal.evaluators.evaluate import Result
from xmodal.evaluators.evaluate_sts import evaluate_sts, judge
from xmodal.evaluators.sts import spearman
from xmodal.evaluators.topics import evaluate_topics

PROSE = "prose"


@dataclass(frozen=True)
class SentenceJudge:
    """dev: the pairs whose Spearman correlation chooses among the steps of training. tests: what is reported."""

    dev: StsSet | None
    tests: StsSets | Prose | None

    @classmethod
    def of(cls, spec: str | None, columns: Sequence[str] = ()) -> SentenceJudge:
        """Read a folder, table or dataset of scored pairs (see `read_sts`), or the test split of prose.

        Raises InputError for what can't be read.
        """
        if spec is None:
            return cls(None, None)
        if spec == PROSE:
            return cls(None, Prose("test"))
        return cls(read_sts_dev(spec, columns), read_sts(spec, columns=columns))

    def test(self, model: Any) -> Result:
        """Protocol and scores of a model with `encode`; both empty without tests. Every process must call it."""
        if self.tests is None:
            return {}, {}
        if isinstance(self.tests, Prose):
            return evaluate_topics(model, self.tests)
        return evaluate_sts(model, self.tests)

    def development(self, model: Any) -> float:
        """Spearman's correlation on dev, a fraction. Every process must call it."""
        assert self.dev is not None
        return spearman(judge(model, [self.dev]).similarity[self.dev.name], self.dev.gold)
