"""Which queries a report shows, and what the model answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators.embed import Embedded
from xmodal.evaluators.nearest import nearest
from xmodal.evaluators.retrieval import ranks

NEAREST = 5  # answers that are shown


@dataclass(frozen=True)
class Answer:
    row: int  # in the gallery
    similarity: float  # cosine
    right: bool


@dataclass(frozen=True)
class Answered:
    """A query's nearest answers; `missed` is its best right answer where that is not among them."""

    query: int
    rank: int  # of the best right answer, from 1; a tie with a wrong one is lost
    among: int  # answers in the gallery
    answers: tuple[Answer, ...]
    missed: Answer | None


class Direction:
    """One direction of a retrieval test: all queries with their ranks and their right answers.

    query: (q, d), gallery: (m, d), unit; pairs: (p, 2) rows (query, gallery); rank: (q,) as `ranks` gives it.
    """

    def __init__(self, query: Tensor, gallery: Tensor, pairs: np.ndarray, rank: np.ndarray) -> None:
        self.query, self.gallery, self.rank = query, gallery, rank
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._query, self._answer = pairs[order].T
        some = zip(torch.tensor(self._query).split(65536), torch.tensor(self._answer).split(65536), strict=True)
        products = [(query[q] * gallery[a]).sum(1) for q, a in some]
        self._similarity = torch.cat(products).numpy()  # (p,) of right answers

    def right(self, query: int) -> np.ndarray:
        """The gallery rows that are right for a query."""
        return self._answer[self._span(query)]

    @property
    def first_right(self) -> np.ndarray:
        """The first answer that is right for each query, (q,)."""
        return self._answer[np.searchsorted(self._query, np.arange(len(self.query)))]

    def best_right(self) -> np.ndarray:
        """The similarity of each query's best right answer, (q,)."""
        best = np.full(len(self.query), -np.inf)
        np.maximum.at(best, self._query, self._similarity)
        return best

    def choose(self, each: int, owner: np.ndarray | None = None) -> dict[str, list[int]]:
        """Queries that did best, middling and worst, `each` of a kind or fewer where there are few; none comes twice.

        They are ordered by rank, among equals by the similarity of the best right answer.
        owner: (q,), the picture that a query belongs to: of each picture one query is taken, so that its five captions
        don't fill the place of five.
        """
        order = np.lexsort((-self.best_right(), self.rank))  # best first
        middle = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
        owner = np.arange(len(order)) if owner is None else owner
        each = min(each, max(1, len(np.unique(owner)) // 3))
        taken: set[int] = set()
        found = {}
        for kind, candidates in (("best", order), ("worst", order[::-1]), ("median", order[middle])):
            found[kind] = []
            for query in candidates.tolist():
                if len(found[kind]) == each:
                    break
                if int(owner[query]) not in taken:
                    taken.add(int(owner[query]))
                    found[kind].append(query)
        return {kind: found[kind] for kind in ("best", "median", "worst") if found[kind]}

    def answer(self, queries: Sequence[int], k: int = NEAREST) -> list[Answered]:
        """The k nearest answers of some queries."""
        right = [torch.tensor(self.right(q)) for q in queries]
        similarity, place = nearest(self.query[list(queries)], self.gallery, k, right)
        found = []
        for q, row, near in zip(queries, similarity.tolist(), place.tolist(), strict=True):
            good = set(self.right(q).tolist())
            answers = tuple(Answer(g, s, g in good) for s, g in zip(row, near, strict=True))
            missed = None if any(a.right for a in answers) else self._best(q)
            found.append(Answered(q, int(self.rank[q]), len(self.gallery), answers, missed))
        return found

    def _best(self, query: int) -> Answer:
        span = self._span(query)
        best = int(self._similarity[span].argmax())
        return Answer(int(self._answer[span][best]), float(self._similarity[span][best]), True)

    def _span(self, query: int) -> slice:
        return slice(*np.searchsorted(self._query, [query, query + 1]).tolist())


def directions(embedded: Embedded) -> dict[str, Direction]:
    """Both directions of a test, by the names they have in scores."""
    of_image, of_text = ranks(embedded.image, embedded.text, embedded.pairs)
    image, text = embedded.image.cpu().float(), embedded.text.cpu().float()
    return {
        "text_to_image": Direction(text, image, embedded.pairs[:, ::-1], of_text),
        "image_to_text": Direction(image, text, embedded.pairs, of_image),
    }
