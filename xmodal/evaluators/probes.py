"""What can be learnt from an encoder's features: neighbours and a linear classifier, from all labels or from few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import __version__, distributed
from xmodal.data.few_labels import few_labels
from xmodal.data.order import draws
from xmodal.data.pictures import Pictures
from xmodal.data.views import views
from xmodal.encoders.preparation import Preparation
from xmodal.errors import BadSample, InputError
from xmodal.evaluators import bootstrap
from xmodal.evaluators.alignment import alignment_score
from xmodal.evaluators.evaluate_pictures import (
    Embedding,
    ImageModel,
    embed_pictures,
    score_answers,
    score_spread,
    voters,
)
from xmodal.evaluators.knn import TEMPERATURE, K, knn_predictions
from xmodal.evaluators.linear import ENOUGH, FOLDS, class_ranks, fit_linear
from xmodal.evaluators.scores import Scores

PICTURES_SEEN_TWICE = 1024  # for the alignment

LINEAR = (
    "multinomial logistic regression by L-BFGS on standardised features, an L2 penalty in 1e-6 … 1e2 by "
    f"the accuracy on 1/{FOLDS} of the training labels, or on each such part in turn where it is below {ENOUGH:,}; "
    "then fitted to all of them"
)
INTERVAL = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the pictures that are judged; "
    "what was learnt from is fixed; no variance over seeds of training"
)


@dataclass(frozen=True)
class Answers:
    """What a probe says of the test pictures that have a class.

    rank: of each picture's own class from 1, (n,); predicted: the class that won, (n,); told: what was chosen for it.
    """

    rank: np.ndarray
    predicted: np.ndarray
    told: str = ""


@dataclass(frozen=True)
class Probed:
    """train: features by kind of the pictures that can be learnt from; learnt: by fraction of the labels, which of them
    were, (m,) bool; test: of all that are judged; own: the classes of those of them that have one, (n,). The rest by
    probe, such as "labels_1%/before_head/linear"; parts of which there is one only are left out of its name.
    """

    train: dict[str, Embedding]
    learnt: dict[float, np.ndarray]
    test: dict[str, Embedding]
    own: np.ndarray
    answers: dict[str, Answers]
    tables: dict[str, np.ndarray]
    scores: Scores
    protocol: dict[str, Any]


def probe(
    model: ImageModel,
    train: Pictures,
    test: Pictures,
    *,
    probes: Sequence[str] = ("knn", "linear"),
    fractions: Sequence[float] = (1.0,),
    k: int = K,
    temperature: float = TEMPERATURE,
) -> Probed:
    """Embed all once; fit and ask each probe with each kind of features and each fraction of the training labels.

    model: has encode_image; one that has `apart`, too, gives several kinds of features (`encoders.image_tower`).
    Every process must call it, and embeds a part. Raises InputError where there is nothing to learn or to judge.
    """
    require_classes(train, test)
    c = len(train.classes)
    of_train, of_test = _embed(model, train, voters(train, len(train))), _embed(model, test)
    judged = next(iter(of_test.values()))
    own, with_class = judged.labels[judged.labelled], torch.from_numpy(judged.labelled)
    if not len(own):
        raise InputError(f"No picture of {test.name} that can be read has a class that {train.name} has, too.")
    learnt = {f: np.isin(next(iter(of_train.values())).number, few_labels(train, f)) for f in fractions}
    answers, tables, scores = {}, {}, {}
    for fraction, some in learnt.items():
        for kind, found in of_test.items():
            labels, rows = of_train[kind].labels[some], of_train[kind].rows[torch.from_numpy(some)]
            if len(np.unique(labels)) < 2:
                raise InputError(f"The pictures of {train.name} that can be read are not of two classes or more.")
            for name in probes:
                full = "/".join(filter(None, (labels_name(fraction, fractions), kind, name)))
                answers[full] = _ask(name, rows, labels, found.rows[with_class], own, c, k, temperature)
                scored, tables[full] = score_answers(answers[full].rank, answers[full].predicted, own, c)
                scores |= {f"{full}/{figure}": score for figure, score in scored.items()}
    protocol = _protocol(train, test, of_train, of_test, learnt)
    if "knn" in probes:
        protocol["knn"] = f"k {k}, votes weighted by exp(cosine / {temperature:g})"
    if "linear" in probes:
        protocol["linear"] = LINEAR
        protocol["penalty of linear"] = {name: one.told for name, one in answers.items() if one.told}
    return Probed(of_train, learnt, of_test, own, answers, tables, scores, {**protocol, "interval": INTERVAL})


def require_classes(train: Pictures, test: Pictures) -> None:
    """Raises InputError where there is nothing to learn or nothing to judge: no classes, or one alone."""
    for pictures in (train, test):
        if pictures.labels is None:
            raise InputError(
                f"{pictures.name} has no classes to probe for. Expected a folder with a folder for each class, or a "
                "column of classes; --label-column names it."
            )
    assert train.labels is not None
    kinds = np.unique(train.labels[train.labels >= 0]).tolist()
    if not kinds:
        raise InputError(f"No picture of {train.name} has a class.")
    if len(kinds) == 1:
        raise InputError(
            f"All pictures of {train.name} are of one class, {train.classes[kinds[0]]!r}: nothing can be told apart."
        )


def labels_name(fraction: float, fractions: Sequence[float]) -> str:
    """ "labels_1%": of several fractions, the part of a score's name that says which."""
    return f"labels_{100 * fraction:g}%" if len(fractions) > 1 else ""


def geometry(model: Any, test: Pictures, found: Mapping[str, Embedding]) -> tuple[str, Scores]:
    """Uniformity and effective rank of all test pictures, alignment of two views of some; and how that was done.

    model: has encode_image and preparation. found: features by kind. Every process must call it.
    """
    some = next(iter(found.values())).number[:PICTURES_SEEN_TWICE]
    first, second = (_apart(model, rows) for rows in _seen_twice(model, test, some))
    scores: Scores = {}
    for kind, embedding in found.items():
        of_kind = {"alignment": alignment_score(first[kind], second[kind]), **score_spread(embedding)}
        scores |= {"/".join(filter(None, ("features", kind, name))): score for name, score in of_kind.items()}
    told = (
        f"alignment: mean squared distance of two views by SimCLR's augmentations, of {len(some):,} test pictures; "
        "uniformity and effective rank of all, not centred; the latter has no interval"
    )
    return told, scores


def _embed(model: ImageModel, pictures: Pictures, rows: np.ndarray | None = None) -> dict[str, Embedding]:
    found = embed_pictures(model, pictures, rows)
    return {
        kind: Embedding(torch.nn.functional.normalize(some, dim=1), found.labels, found.unreadable, found.number)
        for kind, some in _apart(model, found.rows).items()
    }


def _apart(model: Any, rows: Tensor) -> dict[str, Tensor]:
    return model.apart(rows) if hasattr(model, "apart") else {"": rows}


def _ask(
    name: str, rows: Tensor, labels: np.ndarray, asked: Tensor, own: np.ndarray, c: int, k: int, temperature: float
) -> Answers:
    if name == "knn":
        return Answers(*knn_predictions(rows, labels, asked, own, k, temperature))
    found = fit_linear(rows, labels, classes=c)
    chosen = f"{found.penalty:.3g}"
    if not found.tried:
        chosen += ", for want of labels to search with"
    elif found.penalty in (min(found.tried), max(found.tried)):
        chosen += ", an end of the search"
    return Answers(*class_ranks(found(asked), own), chosen)


def _seen_twice(model: Any, pictures: Pictures, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features of two views of each picture by SimCLR's augmentations, (n, d) twice."""
    seen = model.preparation
    edge = seen.edge or seen.height  # views of the size out of whose middle the tower takes its own
    two = views("simclr", Preparation(edge, edge * seen.width // seen.height, resize="shortest"))
    mine = rows[distributed.part(len(rows))]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a in range(0, len(mine), 64):
        found = {
            row: picture
            for row, picture in zip(mine[a : a + 64].tolist(), pictures.images(mine[a : a + 64]), strict=True)
            if not isinstance(picture, BadSample)
        }
        if found:
            made = two(list(found.values()), draws(0, 0, np.array(list(found)), two.draws))["views"]  # (b, 2, 3, h, w)
            for part, view in zip(parts, made.permute(1, 0, 3, 4, 2).numpy(), strict=True):
                part.append(torch.as_tensor(model.encode_image(list(view))).float())
    return distributed.gather_parts(parts[0]), distributed.gather_parts(parts[1])


def _protocol(
    train: Pictures,
    test: Pictures,
    of_train: Mapping[str, Embedding],
    of_test: Mapping[str, Embedding],
    learnt: Mapping[float, np.ndarray],
) -> dict[str, Any]:
    whole, judged = next(iter(of_train.values())), next(iter(of_test.values()))
    said: dict[str, Any] = {
        "task": "probes: what can be learnt from the features of an image encoder",
        "data": test.name,
        "pictures": len(judged.rows),
        "pictures with a class that is learnt": int(judged.labelled.sum()),
        "classes": len(train.classes),
        "learnt from": f"{len(whole.rows):,} pictures with a class of {train.name}",
        "unreadable pictures left out": whole.unreadable + judged.unreadable,
    }
    if tuple(learnt) != (1.0,):
        said["labels"] = {f"{100 * f:g}%": f"{some.sum():,} pictures" for f, some in learnt.items()}
        said["which labels"] = "of each class in proportion and at least one, the same for every model, by name"
    widths = [f"{one.rows.shape[1]} wide{', ' + kind if kind else ''}" for kind, one in of_test.items()]
    return {**said, "features": f"unit rows, {'; '.join(widths)}".replace("_", " "), "xmodal": __version__}
