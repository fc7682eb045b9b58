"""Tables of scores, before and after, with the interval of what lies between them."""

from __future__ import annotations

import numpy as np
import torch

from xmodal.evaluators.scores import Scores
from xmodal.report.gallery import Direction
from xmodal.report.matrix import confused, shares
from xmodal.report.tables import changes, first_places, paired_differences, score_tables


def score(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}  # pyright: ignore[reportReturnType]


def test_tables_by_figures() -> None:
    scores: Scores = {
        "val/image_to_text/R@1": score(0.5, 0.4, 0.6),
        "val/image_to_text/mean_rank": score(1234.5, 1200, 1300),
        "val/text_to_image/R@1": score(None),
        "val/text_to_image/mean_rank": score(2),
        "zero_shot/top1": score(1, 1, 1),
    }
    retrieval, zero_shot = score_tables(scores)
    assert retrieval.figures == ("R@1", "mean rank")
    (one, (recall, rank)), (other, (lacking, alone)) = retrieval.rows
    assert (one, other) == ("val, image → text", "val, text → image")
    assert (recall.value, recall.interval, recall.bar) == ("50.0", "40.0 – 60.0", (40.0, 50.0, 60.0))
    assert (rank.value, rank.interval, rank.bar) == ("1,234.5", "1,200.0 – 1,300.0", None)
    assert (lacking.value, alone.value, alone.interval) == ("–", "2.0", "")
    assert zero_shot.rows[0][0] == "zero shot"
    assert [cell.value for _, _, cell in first_places(scores)] == ["50.0", "–", "100.0"]
    assert score_tables({}) == []


def test_changes() -> None:
    before: Scores = {"val/image_to_text/R@1": score(0.5, 0.4, 0.6), "val/image_to_text/mean_rank": score(9.0)}
    after: Scores = {"val/image_to_text/R@1": score(0.4, 0.3, 0.5), "val/image_to_text/mean_rank": score(5.0),
                     "val/image_to_text/R@5": score(0.9)}  # fmt: skip
    paired: Scores = {"val/image_to_text/mean_rank": score(-4, -5, -3)}
    ((question, (recall, rank, new)),) = changes(before, after, paired)
    assert question == "val, image → text"
    assert (recall.before.value, recall.after.value) == ("50.0", "40.0")
    assert (recall.difference.value, recall.verdict) == ("−10.0", "")  # nothing is known of how sure it is
    assert (rank.difference.value, rank.difference.interval, rank.verdict) == ("−4.0", "−5.0 … −3.0", "better")
    assert (new.before.value, new.difference.value) == ("–", "–")
    unsure: Scores = {"val/image_to_text/R@1": score(-0.1, -0.3, 0.1)}
    assert changes(before, after, unsure)[0][1][0].verdict == ""
    worse: Scores = {"val/image_to_text/R@1": score(-0.1, -0.3, -0.05)}
    assert changes(before, after, worse)[0][1][0].verdict == "worse"


def test_differences_are_of_the_same_queries() -> None:
    """One query in ten moves up, none down: that is sure, though both scores' own intervals overlap widely."""
    n = 200
    rows = torch.eye(n)
    pairs = np.repeat(np.arange(n)[:, None], 2, axis=1)
    old = np.where(np.arange(n) % 2, 1, 4)
    new = np.where(np.arange(n) % 10 == 0, 1, old)
    then, now = ({d: Direction(rows, rows, pairs, r) for d in ("image_to_text", "text_to_image")} for r in (old, new))
    scores = {f"val/image_to_text/{figure}": score(0) for figure in ("R@1", "R@5", "mean_rank", "median_rank")}
    scores |= {"val/text_to_image/R@1": score(0), "other/image_to_text/R@1": score(0), "val/top1": score(0)}
    found = paired_differences("val", then, now, scores)
    own = ("image_to_text/R@1", "image_to_text/R@5", "image_to_text/mean_rank", "text_to_image/R@1")
    assert set(found) == {f"val/{name}" for name in own}
    recall, rank = found["val/image_to_text/R@1"], found["val/image_to_text/mean_rank"]
    assert recall["value"] == 0.1
    assert 0.04 < recall["low"] < 0.1 < recall["high"] < 0.16
    assert found["val/image_to_text/R@5"] == {"value": 0, "low": 0, "high": 0}
    assert np.isclose(rank["value"], -0.3)


def test_the_most_frequent_mistakes() -> None:
    table = np.array([[5, 3, 0], [9, 1, 0], [0, 0, 0]])
    assert confused(["a", "b", "c"], table) == [("b", "a", 9, 0.9), ("a", "b", 3, 0.375)]
    assert shares(table)[2].tolist() == [0, 0, 0]
