"""Neighbours of the same topic: are the sentences next to a sentence about the same thing?

Protocol. Each sentence asks for its k nearest others by cosine among all sentences of the set; its score is the
fraction of them that have its topic, and the set's is the mean over sentences. Among similarities that are equal the
order is random, and the score is its expectation: rows that are all equal score as chance does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import __version__
from xmodal.data.prose import Prose, versions
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap
from xmodal.evaluators.evaluate import Result
from xmodal.evaluators.evaluate_sts import embed_sentences
from xmodal.evaluators.retrieval import TIE
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.tf_idf import tf_idf

KS = (1, 10)
TILE = 2**22  # similarities that are held at a time

INTERVAL = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the sentences; those of a "
    "topic count as independent; the sentences among which neighbours are sought are fixed; no variance over seeds of "
    "training"
)


def topic_neighbours(rows: Any, topics: Any, ks: Sequence[int] = KS) -> dict[str, float]:
    """{"same_topic@1": …, "chance/same_topic@1": …}: the fraction of each sentence's k nearest that have its topic.

    rows: (n, d), array or tensor, dense or sparse, unit or not; a row of zeros has cosine 0 with all.
    topics: (n,) long. Chance is what a random order gives, the same for each k.

    Not comparable between sets. It can't be 1 where a topic has k sentences or fewer; see `ceiling`. A topic is where a
    sentence stands, not what it means: sentences that mean the same in two topics count as wrong.
    Raises ValueError for shapes that don't match, numbers that aren't finite, a topic with one sentence, and k that is
    not in 1 … n − 1.
    """
    shares, chance = neighbour_shares(rows, topics, ks), chance_shares(topics)
    return {
        **{f"same_topic@{k}": float(shares[k].mean()) for k in ks},
        **{f"chance/same_topic@{k}": float(chance.mean()) for k in ks},
    }


@torch.no_grad()
def neighbour_shares(rows: Any, topics: Any, ks: Sequence[int] = KS) -> dict[int, np.ndarray]:
    """For each k what fraction of each row's k nearest others have its topic, (n,) float64; see `topic_neighbours`.

    Similarities closer than `retrieval.TIE` are ties. Beyond its inputs it takes O(n) memory and one tile.
    """
    rows, topics = _unit(rows), _checked_topics(topics)
    n = len(topics)
    if len(rows) != n:
        raise ValueError(f"rows and topics must have one length, not {len(rows)} and {n}")
    if not ks or min(ks) < 1 or max(ks) > n - 1:
        raise ValueError(f"k must be in 1 … {n - 1} for {n} sentences, not {tuple(ks)}")
    found = {k: np.empty(n) for k in ks}
    height = max(1, TILE // n)
    for a in range(0, n, height):
        here = torch.arange(a, min(a + height, n))
        tile = _products(rows, here)  # (height, n), less at the end
        tile[here - a, here] = float("-inf")  # nobody is one's own neighbour
        same = topics[here, None] == topics
        largest = tile.topk(max(ks)).values  # (height, max k)
        for k in ks:
            least = largest[:, k - 1, None]
            nearer, tied = tile > least + TIE, (tile - least).abs() <= TIE
            places = k - nearer.sum(1)  # that the tied ones share
            right = (nearer & same).sum(1) + places * (tied & same).sum(1).double() / tied.sum(1)
            found[k][here] = right / k
    return found


def chance_shares(topics: Any) -> np.ndarray:
    """What `neighbour_shares` is on average over random orders, for any k: (n,) float64."""
    others = _others(topics)
    return others / (len(others) - 1)


def ceiling(topics: Any, k: int) -> float:
    """The largest "same_topic@k" there can be: a topic of c sentences has no more than c − 1 right neighbours."""
    return float(np.minimum(_others(topics) / k, 1).mean())


def evaluate_topics(
    model: Any,
    prose: Prose,
    training: Prose | None = None,
    *,
    ks: Sequence[int] = KS,
    batch_size: int | None = None,
    precision: str = "fp32",
) -> Result:
    """Protocol and scores: "same_topic@1" of the model, "tf_idf/same_topic@1", "chance/same_topic@1", and of other k.

    model: has encode(list of str) -> (n, d), or else encode_text. training: where TF-IDF has its words and their
    weights from; the training split of prose, if not given. Every process must call it, and embeds a part.
    Raises InputError for a model without these methods, and for embeddings that aren't finite.
    """
    training = Prose("train") if training is None else training
    rows = embed_sentences(model, prose.sentences, batch_size, precision)
    if not torch.isfinite(rows).all():
        raise InputError("The model's embeddings hold numbers that are not finite; there is nothing to compare.")
    chance = chance_shares(prose.topics)
    shares = {
        "": neighbour_shares(rows, prose.topics, ks),
        "tf_idf/": neighbour_shares(tf_idf(prose.sentences, training.sentences), prose.topics, ks),
        "chance/": dict.fromkeys(ks, chance),
    }
    scores: Scores = {
        f"{whose}same_topic@{k}": bootstrap.mean_score(of_k[k]) for whose, of_k in shares.items() for k in ks
    }
    protocol = {
        "task": "neighbours of the same topic: the mean fraction of a sentence's k nearest others that have its topic",
        "data": prose.name,
        "sentences": len(prose.sentences),
        "topics": len(prose.topic_names),
        "most that can be had": ", ".join(f"{ceiling(prose.topics, k):.1%} @{k}" for k in ks),
        "tf_idf": f"words of {len(training.sentences):,} sentences of {training.name}, weighted as scikit-learn's "
        "TfidfVectorizer does by default",
        "chance": "the mean of all orders",
        "similarity": "cosine; the mean over all orders of what is tied",
        "interval": INTERVAL,
        "versions": versions(),
        "fingerprint": prose.fingerprint(),
        "xmodal": __version__,
    }
    return protocol, scores


def _products(rows: Tensor, some: Tensor) -> Tensor:
    """Rows (n, d), some of their numbers (m,) -> the products of these with all, (m, n)."""
    with torch.autocast("cpu", enabled=False):
        if rows.is_sparse:
            return torch.sparse.mm(rows, rows.index_select(0, some).to_dense().T).T
        return rows[some] @ rows.T


def _unit(rows: Any) -> Tensor:
    rows = torch.as_tensor(rows).detach().cpu()
    if rows.ndim != 2:
        raise ValueError(f"rows must be (n, d), not {tuple(rows.shape)}")
    rows = rows if rows.dtype == torch.float64 else rows.float()
    rows = rows.coalesce() if rows.is_sparse else rows
    values = rows.values() if rows.is_sparse else rows
    if not torch.isfinite(values).all():
        raise ValueError("rows hold numbers that are not finite")
    if not rows.is_sparse:
        return torch.nn.functional.normalize(rows, dim=1)
    row = rows.indices()[0]
    lengths = torch.zeros(len(rows), dtype=rows.dtype).index_add(0, row, values.square()).sqrt()
    unit = values / lengths[row].clamp(min=torch.finfo(rows.dtype).tiny)
    return torch.sparse_coo_tensor(rows.indices(), unit, rows.shape, is_coalesced=True, check_invariants=True)


def _others(topics: Any) -> np.ndarray:
    """How many other sentences have a sentence's topic, (n,)."""
    _, number, sizes = np.unique(_checked_topics(topics).numpy(), return_inverse=True, return_counts=True)
    return sizes[number] - 1


def _checked_topics(topics: Any) -> Tensor:
    topics = torch.as_tensor(topics).cpu()
    if topics.ndim != 1 or topics.is_floating_point():
        raise ValueError(f"topics must be (n,) long, not {tuple(topics.shape)} {topics.dtype}")
    numbers, sizes = topics.unique(return_counts=True)
    if not len(topics):
        raise ValueError("there are no sentences")
    if (sizes == 1).any():
        raise ValueError(f"topic {int(numbers[sizes == 1][0])} has one sentence, which has no right neighbour")
    return topics
