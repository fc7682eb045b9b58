"""Scores as the hub's model-index has them: a task, a dataset and a metric each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xmodal.report.names import ScoreName, parse

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Tests that are of something else, for comparison; the table of the card has them, too.
NOT_THE_MODEL = ("chance", "pixels", "raw_pixels", "tf_idf")
# Names of the hub's for figures that it knows; others keep ours.
METRICS = {"top1": "accuracy", "top5": "top_5_accuracy", "spearman": "spearmanr"}


def eval_results(scores: Mapping[str, Mapping[str, Any]], protocol: Mapping[str, Any]) -> list[EvalResult]:
    """Every finite score of the model, as a fraction or as it is, its interval among the metric's arguments."""
    from huggingface_hub import EvalResult

    found = []
    for name, score in scores.items():
        said = parse(name)
        if not _finite(score.get("value")) or set(said.test.split("/")) & set(NOT_THE_MODEL):
            continue
        data = data_of(said, protocol)
        interval = {end: round(score[end], 6) for end in ("low", "high") if _finite(score.get(end))}
        found.append(
            EvalResult(
                task_type=_task(said),
                dataset_type=re.sub(r"[^\w./-]+", "_", data).strip("_") or "unknown",
                dataset_name=data or "unknown",
                dataset_config=said.test or None,  # the hub's library puts together what these have in common
                metric_type=METRICS.get(said.figure, re.sub(r"^R@(\d+)$", r"recall_at_\1", said.figure)),
                metric_name=", ".join(part for part in (said.question, said.figure.replace("_", " ")) if part),
                metric_value=round(score["value"], 6),
                metric_args=interval or None,
            )
        )
    return found


def data_of(name: ScoreName, protocol: Mapping[str, Any]) -> str:
    """What a test was made on: the protocol says it for each test or for all of them."""
    of_test = protocol.get(name.test)
    return str((of_test.get("data") if isinstance(of_test, Mapping) else None) or protocol.get("data") or "")


def _task(name: ScoreName) -> str:
    if name.figure == "spearman":
        return "semantic-similarity"
    if name.direction:
        return "zero-shot-retrieval"
    if name.test.rpartition("/")[2] == "zero_shot":
        return "zero-shot-image-classification"
    return "image-classification" if re.match(r"top\d|macro_", name.figure) else "feature-extraction"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
