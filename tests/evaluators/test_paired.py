"""Two models on the same items: McNemar's test, differences in the same resamples, and how they are said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from xmodal.evaluators import bootstrap
from xmodal.evaluators.embed import Embedded
from xmodal.evaluators.evaluate import score_retrieval
from xmodal.evaluators.paired import compare_classes, compare_retrieval, mcnemar, said
from xmodal.evaluators.probes import Answers


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 12), (12, 3), (7, 7), (400, 520), (9000, 9600)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    first = np.array([True] * b + [False] * c + [True] * 4 + [False] * 2)
    second = np.array([False] * b + [True] * c + [True] * 4 + [False] * 2)
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (b, c)
    expected = binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert found["p"] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match=r"must both be \(n,\)"):
        mcnemar(first, second[1:])


def test_a_small_difference_on_the_same_pictures_is_sure() -> None:
    # Of 1,000 pictures both have 600 right, and the second 30 beside. The intervals of both scores overlap.
    own = np.zeros(1000, dtype=int)
    own[500:] = 1
    first = np.arange(1000) % 1000 < 600
    second = first | (np.arange(1000) >= 970)
    answers = [Answers(np.where(right, 1, 2), np.where(right, own, 1 - own)) for right in (first, second)]
    scores, apart, tests = compare_classes(answers, own, 2)
    assert scores[0]["top1"]["high"] > scores[1]["top1"]["low"]
    assert apart[0]["top1"]["value"] == pytest.approx(0.03)
    assert 0.015 < apart[0]["top1"]["low"] < 0.03 < apart[0]["top1"]["high"] < 0.045
    assert tests[0] == mcnemar(first, second)
    assert tests[0]["p"] == pytest.approx(2 * 0.5**30)
    sentence = said("A", "B", "top1", apart[0]["top1"], tests[0])
    assert sentence.startswith("B is better than A by 3.0 points in top1 (95 % interval 2.1 to ")
    assert sentence.endswith("McNemar's test p below 0.0001: B alone is right on 30, A alone on 0).")
    back = compare_classes(answers[::-1], own, 2)[1][0]["top1"]
    assert said("B", "A", "top1", back).startswith("B is better than A by 3.0 points in top1 (95 % interval 2.1 to ")


def test_figures_of_classes() -> None:
    own = np.array([0, 0, 1, 1, 2, 2])
    perfect = Answers(np.ones(6, dtype=int), own)
    flat = Answers(np.array([1, 1, 2, 2, 2, 2]), np.zeros(6, dtype=int))
    scores, apart, _ = compare_classes([flat, perfect, flat], own, 3)
    assert [s["top1"]["value"] for s in scores] == pytest.approx([1 / 3, 1, 1 / 3])
    assert [s["macro_f1"]["value"] for s in scores] == pytest.approx([1 / 6, 1, 1 / 6])  # (0.5 + 0 + 0) / 3
    assert "top5" not in scores[0]
    assert apart[0]["macro_f1"]["value"] == pytest.approx(5 / 6)
    assert apart[1] == {name: {"value": 0, "low": 0, "high": 0} for name in apart[1]}  # itself, in every resample
    assert "not surely better or worse" in said("A", "B", "top1", apart[1]["top1"])


def test_retrieval() -> None:
    rng = np.random.default_rng(0)
    text = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(120, 16))), dim=1).float()
    noise = torch.tensor(rng.normal(size=(60, 16))).float()
    pairs = np.stack([np.arange(120) // 2, np.arange(120)], 1)

    def embedded(much: float) -> Embedded:
        image = torch.nn.functional.normalize(text.view(60, 2, 16).sum(1) + much * noise, dim=1)
        return Embedded(image, text, pairs, np.arange(60), [str(i) for i in range(120)], 0)

    worse, better = embedded(0.8), embedded(0.3)
    scores, apart = compare_retrieval([worse, better], ks=(1, 5))
    for one, found in zip((worse, better), scores, strict=True):
        expected = score_retrieval(one, "", (1, 5))[1]
        assert found == {name: score for name, score in expected.items() if not name.endswith("median_rank")}
    for name, difference in apart[0].items():
        assert difference["value"] == pytest.approx(scores[1][name]["value"] - scores[0][name]["value"])
    of_text = apart[0]["text_to_image/R@1"]
    assert of_text["value"] > 0.2
    assert 0 < of_text["low"] < of_text["value"] < of_text["high"]
    assert apart[0]["image_to_text/mean_rank"]["high"] < 0
    unpaired = scores[1]["text_to_image/R@1"]["high"] - scores[0]["text_to_image/R@1"]["low"]
    assert of_text["high"] < unpaired
    assert bootstrap.LEVEL == 0.95
