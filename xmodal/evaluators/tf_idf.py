"""TF-IDF: sentences as weighted counts of their words, what an encoder of sentences should be better than."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

WORD = re.compile(r"\b\w\w+\b")  # two characters or more, scikit-learn's default


def tf_idf(texts: Sequence[str], training: Sequence[str]) -> Tensor:
    """Texts (n) as sparse unit rows (n, v) float32, v the number of words in the training texts.

    A word's weight is its count in the text times ln((1 + N) / (1 + N_w)) + 1, where N_w of N training texts have the
    word (Spärck Jones 1972, smoothed as scikit-learn's TfidfVectorizer does). Words that training doesn't have are
    left out; a text of such words alone is a row of zeros.
    """
    found = Counter(word for text in training for word in set(words(text)))
    number = {word: column for column, word in enumerate(sorted(found))}
    seen_in = torch.tensor([found[word] for word in number], dtype=torch.float64)
    idf = ((1 + len(training)) / (1 + seen_in)).log() + 1  # (v,)

    cells = [
        (row, number[word], times)
        for row, text in enumerate(texts)
        for word, times in Counter(words(text)).items()
        if word in number
    ]
    row, column, times = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3).unbind(1)
    weights = times * idf[column]
    squares = torch.zeros(len(texts), dtype=torch.float64).index_add(0, row, weights.square())
    weights = (weights / squares[row].sqrt()).float()
    return torch.sparse_coo_tensor(
        torch.stack([row, column]), weights, (len(texts), len(number)), check_invariants=True
    ).coalesce()


def words(text: str) -> list[str]:
    """The words of a text in small letters, as often as they come."""
    return WORD.findall(text.lower())
