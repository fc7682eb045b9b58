"""Which queries are shown and what is nearest to them, on matrices that can be checked by eye."""

from __future__ import annotations

import numpy as np
import torch

from xmodal.evaluators.nearest import nearest
from xmodal.evaluators.retrieval import TIE
from xmodal.report.gallery import Direction

#                    answer 0    1    2    3    4    5    the right one is the query's own number
SIMILAR = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.0, 0.0],  # rank 1
                        [0.5, 0.2, 0.4, 0.3, 0.1, 0.0],  # rank 4
                        [0.0, 0.1, 0.7, 0.2, 0.3, 0.4],  # rank 1, less similar than query 0
                        [0.6, 0.5, 0.1, 0.4, 0.2, 0.3],  # rank 3
                        [0.9, 0.8, 0.7, 0.6, 0.1, 0.5],  # rank 6
                        [0.8, 0.1, 0.2, 0.3, 0.4, 0.7]])  # rank 2  # fmt: skip


def direction(similar: torch.Tensor = SIMILAR, pairs: np.ndarray | None = None) -> Direction:
    """Queries whose products with the answers are the numbers of a matrix; ranks as the score's protocol has them."""
    pairs = np.repeat(np.arange(len(similar))[:, None], 2, axis=1) if pairs is None else pairs
    ranks = []
    for query, row in enumerate(similar):
        right = pairs[pairs[:, 0] == query, 1]
        wrong = [float(s) for answer, s in enumerate(row) if answer not in right]
        ranks.append(1 + sum(s >= float(row[right].max()) - TIE for s in wrong))
    return Direction(similar, torch.eye(similar.shape[1]), pairs, np.array(ranks))


def test_best_median_worst() -> None:
    # From the best to the worst: 0, 2, 5, 3, 1, 4.
    assert direction().choose(2) == {"best": [0, 2], "median": [5, 3], "worst": [4, 1]}
    assert direction().choose(1) == {"best": [0], "median": [5], "worst": [4]}
    assert direction().choose(9) == direction().choose(2)  # a third of six is two


def test_few_queries() -> None:
    one, two = (np.array([[q, q] for q in range(n)]) for n in (1, 2))
    assert direction(SIMILAR[:1], one).choose(3) == {"best": [0]}
    assert direction(SIMILAR[:2], two).choose(3) == {"best": [0], "worst": [1]}


def test_one_query_of_a_picture() -> None:
    # The captions 0, 2 and 5 do best and are one picture's, 3 and 4 another's.
    owner = np.array([7, 8, 7, 9, 9, 7])
    assert direction().choose(1, owner) == {"best": [0], "median": [1], "worst": [4]}


def test_nearest_answers() -> None:
    first, second = direction().answer([5, 4], k=3)
    assert [(a.row, a.right) for a in first.answers] == [(0, False), (5, True), (4, False)]
    assert (first.rank, first.among, first.missed) == (2, 6, None)
    assert [(a.row, a.right) for a in second.answers] == [(0, False), (1, False), (2, False)]
    assert second.missed is not None
    assert (second.rank, second.missed.row, round(second.missed.similarity, 3)) == (6, 4, 0.1)


def test_several_right_answers() -> None:
    pairs = np.array([[0, 3], [0, 0], [0, 4]])
    (found,) = direction(SIMILAR[:1], pairs).answer([0], k=2)
    assert [(a.row, a.right) for a in found.answers] == [(0, True), (3, True)]
    pairs = np.array([[0, 4], [0, 1], [0, 5]])
    (found,) = direction(SIMILAR[:1], pairs).answer([0], k=2)
    assert found.missed is not None
    assert found.missed.row == 1  # the nearest of those that are right


def test_a_tie_is_lost_here_as_in_the_score() -> None:
    tied = torch.tensor([[0.5, 0.5 - TIE / 4, 0.1]])
    (found,) = direction(tied, np.array([[0, 0]])).answer([0])
    assert found.rank == 2
    assert [a.row for a in found.answers] == [1, 0, 2]


def test_blocks_give_what_the_whole_gives() -> None:
    numbers = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(7, 16, generator=numbers), torch.randn(101, 16, generator=numbers)
    gallery[60] = gallery[3]  # equal rows in different blocks
    right = [torch.tensor([3, q]) for q in range(7)]
    whole = query @ gallery.T
    order = torch.argsort(whole, dim=1, descending=True, stable=True)[:, :9]
    for block in (1, 8, 100, 101, 5000):
        similarity, place = nearest(query, gallery, 9, block=block)
        assert torch.equal(place, order)
        torch.testing.assert_close(similarity, whole.gather(1, order))
        with_right = nearest(query, gallery, 101, right, block=block)[1]
        assert all(row.index(60) < row.index(3) for row in with_right.tolist())
    assert nearest(query, gallery[:4], 9)[1].shape == (7, 4)
