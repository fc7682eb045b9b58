"""Several models asked the same: embed with each, score, and take the differences to the first query by query.

One model is open at a time; what is kept of it are its embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import __version__
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap
from xmodal.evaluators.embed import Embedded, embed_images, embed_pairs, embed_texts
from xmodal.evaluators.evaluate import score_retrieval
from xmodal.evaluators.evaluate_pictures import Embedding
from xmodal.evaluators.paired import compare_classes, compare_retrieval
from xmodal.evaluators.probes import Answers, Probed, probe
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.zeroshot import class_embeddings, predictions

MOST_DOTS = 1500  # of a map

DIFFERENCES = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the queries, the same for all "
    "models, of each model's figure less the first's; what they choose from is fixed; no variance over seeds of "
    "training"
)


@dataclass(frozen=True)
class Compared:
    """One task: each model's scores, what all but the first have more than the first, and McNemar of top1 if there is
    one; and what they were computed from, for the page."""

    task: str
    protocol: dict[str, Any]
    scores: list[Scores]
    differences: list[Scores]
    mcnemar: list[dict[str, float]] = field(default_factory=list)
    shown: Any = None


@dataclass(frozen=True)
class Retrieved:
    source: Any
    embedded: list[Embedded]


@dataclass(frozen=True)
class Classed:
    """test: features of the same pictures by each model, all with a class; train: what they were learnt from, or the
    rows of the classes (c, d) by model."""

    pictures: Any
    train_pictures: Any
    classes: list[str]
    answers: list[Answers]
    test: list[Embedding]
    train: list[Embedding] | list[Tensor]


@dataclass(frozen=True)
class Paired:
    """similarity: by model and set, (n,); some: sentences, of which rows are each model's embeddings."""

    sets: Sequence[Any]
    similarity: list[dict[str, np.ndarray]]
    some: list[str]
    rows: list[Tensor]


def compare_pairs(models: Sequence[str], source: Any, device: Any) -> Compared:
    """Retrieval of dual encoders. Every process must call it."""
    from xmodal.encoders import load_towers

    embedded = [embed_pairs(load_towers(spec, device=device), source) for spec in models]
    if any(len(e.rows) != len(embedded[0].rows) or e.texts != embedded[0].texts for e in embedded):
        raise InputError(f"Not all models were shown the same of {source.name}: a picture could be read one time only.")
    scores, differences = compare_retrieval(embedded)
    protocol, _ = score_retrieval(embedded[0], source.name, (1,))
    return Compared(
        "retrieval", {**protocol, "interval of a difference": DIFFERENCES}, scores, differences, [],
        Retrieved(source, embedded),
    )  # fmt: skip


def compare_zero_shot(
    models: Sequence[str], pictures: Any, prompts: Sequence[str], prompts_name: str, device: Any
) -> Compared:
    """Zero-shot classification by dual encoders; pictures have labels and classes. Every process must call it."""
    from xmodal.encoders import load_towers

    rows = np.flatnonzero(pictures.labels >= 0)
    answers, test, texts = [], [], []
    for spec in models:
        model = load_towers(spec, device=device)
        image, readable, bad = embed_images(model, pictures.images, rows)
        if not readable.any():
            raise InputError(f"No image of {pictures.name} can be read: {', '.join(bad)}.")
        text = class_embeddings(lambda some, model=model: embed_texts(model, some), pictures.classes, prompts)
        number = rows[readable]
        test.append(Embedding(image, pictures.labels[number], int((~readable).sum()), number))
        answers.append(Answers(*predictions(image, text, pictures.labels[number])))
        texts.append(text)
    _require_same(test, pictures.name)
    own = test[0].labels
    scores, differences, tests = compare_classes(answers, own, len(pictures.classes))
    protocol = {
        "task": "zero-shot classification",
        "data": pictures.name,
        "images": len(own),
        "unreadable images left out": test[0].unreadable,
        "classes": len(pictures.classes),
        "templates": f"{len(prompts)} ({prompts_name}), each class's unit rows averaged and made unit again",
        "similarity": "cosine; a tie with a wrong class is lost",
        "interval of a difference": DIFFERENCES,
        "xmodal": __version__,
    }
    shown = Classed(pictures, None, list(pictures.classes), answers, test, texts)
    return Compared("zeroshot", protocol, scores, differences, tests, shown)


def compare_probes(
    models: Sequence[str], train: Any, test: Any, probes: Sequence[str], device: Any, side: int | None = None
) -> list[Compared]:
    """Probes of image towers, before the projection where there is one. Every process must call it."""
    from xmodal.encoders.image_tower import open_image_tower

    found: list[Probed] = []
    for spec in models:
        torch.manual_seed(0)  # of `small`
        tower = open_image_tower(spec, side, device)
        found.append(probe(_BeforeHead(tower), train, test, probes=probes))
    judged = [one.test[""] for one in found]
    _require_same(judged, test.name)
    results = []
    for name in probes:
        answers = [one.answers[name] for one in found]
        scores, differences, tests = compare_classes(answers, found[0].own, len(train.classes))
        left_out = {"knn", "linear", "features", "penalty of linear"} - {name}
        protocol = {key: said for key, said in found[0].protocol.items() if key not in left_out}
        protocol["features"] = {
            spec: f"{one.test[''].rows.shape[1]} wide, unit rows, before the projection where there is one"
            for spec, one in zip(models, found, strict=True)
        }
        if name == "linear":
            protocol["penalty of linear"] = {spec: one.told for spec, one in zip(models, answers, strict=True)}
        with_class = torch.from_numpy(judged[0].labelled)
        asked = [
            Embedding(e.rows[with_class], e.labels[e.labelled], e.unreadable, e.number[e.labelled]) for e in judged
        ]
        shown = Classed(test, train, list(train.classes), answers, asked, [one.train[""] for one in found])
        results.append(
            Compared(
                name,
                {**protocol, "interval of a difference": DIFFERENCES},
                scores,
                differences,
                tests,
                None if results else shown,  # neighbours and maps are the same for all probes
            )
        )
    return results


def compare_sentences(models: Sequence[str], sets: Any, device: Any) -> Compared:
    """Semantic textual similarity by whatever encodes sentences. Every process must call it."""
    from xmodal import load
    from xmodal.evaluators.evaluate_sts import compare_sts, embed_sentences, judge, protocol

    sentences = list(dict.fromkeys(s for one in sets.found for s in (*one.first, *one.second)))
    some = [sentences[i] for i in spread_evenly(len(sentences), MOST_DOTS)]
    judged, rows = {}, []
    for spec in models:
        model = load(spec, device=device)
        judged[spec] = judge(model, sets)
        rows.append(embed_sentences(model, some))
    scores, differences = compare_sts(list(judged.values()), sets)
    told = {**protocol(sets, judged), "interval of a difference": DIFFERENCES.replace("queries", "pairs")}
    shown = Paired(sets.found, [one.similarity for one in judged.values()], some, rows)
    return Compared("sts", told, scores, differences, [], shown)


def kind_of(spec: str) -> str:
    """ "dual", "image" or "sentence": what a spec names, without its weights. InputError if it names nothing."""
    from xmodal.encoders.hub import at_hand
    from xmodal.encoders.image import holds_image_encoder

    spec = at_hand(spec)
    folder = Path(spec)
    if spec.startswith("timm:") or spec == "small" or holds_image_encoder(folder):
        return "image"
    if spec.startswith("st:"):
        return "sentence"
    if spec.startswith("hf:"):
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

        from xmodal.encoders.hf import DUAL
        from xmodal.encoders.hf_files import read_config

        kind = read_config(spec.removeprefix("hf:")).model_type
        if kind in DUAL:
            return "dual"
        return "image" if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else "sentence"
    if folder.is_dir():
        from xmodal.encoders.sentence_specs import KINDS

        if (folder / "modules.json").is_file():
            return "sentence"
        try:
            kind = json.loads((folder / "model.json").read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError):
            kind = None  # whoever opens it says what is wrong
        return "sentence" if kind in KINDS else "dual"
    return "dual"


class _BeforeHead:
    """An image tower with one kind of features."""

    def __init__(self, tower: Any) -> None:
        self.tower = tower

    def encode_image(self, images: Any) -> Tensor:
        return next(iter(self.tower.apart(self.tower.encode_image(images)).values()))


def spread_evenly(n: int, most: int) -> np.ndarray:
    """Which of n items are taken where there are too many, (≤ most,)."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _require_same(found: Sequence[Embedding], name: str) -> None:
    if any(not np.array_equal(one.number, found[0].number) for one in found):
        raise InputError(f"Not all models were shown the same of {name}: a picture could be read one time only.")
