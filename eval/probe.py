"""What can be learnt from an image encoder's features: k nearest neighbours, a linear classifier, fine-tuning.

Each from all labels or from few, with accuracy, macro and per-class figures, their 95 % intervals and the confusion
matrix; before the model's projection and after it, where it has one; and how the features lie: alignment, uniformity,
effective rank.

    xmodal eval probe runs/simclr --data cifar10/train.parquet
    xmodal eval probe hf:FOLDER --data pictures.csv --labels 0.01 0.1 1 --json scores.json
    xmodal eval probe timm:resnet18 --data FOLDER --test OTHER_FOLDER --probes knn linear finetune --pixels

Another set than the encoder was trained on, as --data, is a transfer; --test asks what was learnt on one of another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    from xmodal.data.pictures import Pictures
    from xmodal.encoders.image_tower import ImageTower
    from xmodal.evaluators.probes import Probed


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """Anything with an image tower: a run folder, timm:NAME[/random], hf:ID_OR_FOLDER, open_clip:MODEL[/PRETRAINED];
    small is a fresh network."""
    data: str
    """Pictures with classes to learn from: a folder with a folder for each class, a table, parquet, hf-dataset:NAME, or
    glyphs. Of data with splits, its split train."""
    test: str | None = None
    """What to judge on: a split of --data, or other data (its split test, else val, else all of it). Without it the
    split test of --data, else val, else what is held out."""
    hold_out: float = 0.2
    """The fraction of data without splits that is held out to judge on, the same in each class and for every model."""
    labels: tuple[float, ...] = (1.0,)
    """Fractions of the training labels that are used: 0.01 0.1 1 says what is learnt from 1 %, 10 % and all of them."""
    probes: tuple[Literal["knn", "linear", "finetune"], ...] = ("knn", "linear")
    """Nearest neighbours, a linear classifier; finetune trains the network, too."""
    pixels: bool = False
    """The same of raw pixels beside: what an encoder has to be better than."""
    knn_k: int = 200
    """How many of the nearest training pictures vote."""
    knn_temperature: float = 0.1
    """A vote counts exp(cosine / this)."""
    image_size: int | None = None
    """Pixels a side, instead of those that the model takes."""
    batch_size: int = 64
    """finetune: pictures in a step, over all processes."""
    epochs: float = 30
    """finetune: how often the training pictures are gone through."""
    lr: float = 3e-4
    """finetune: the highest learning rate, of AdamW."""
    wd: float = 0.01
    """finetune: weight decay."""
    augment: Literal["auto", "photo", "drawing", "glyphs", "clip", "none"] = "auto"
    """finetune: what is done to pictures; auto: photo for photographs, else drawing."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """finetune: bf16 computes in bfloat16 where the device can; features are always float32."""
    workers: int = 0
    """finetune: processes that read pictures ahead."""
    seed: int = 0
    """finetune: of the order and the augmentation; and of `small`, of its weights."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    label_column: str | None = None
    """The column of classes, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""
    json: Path | None = None
    """Write protocol, scores, the figures of each class and the confusion matrices here as well."""
    output: Path | None = None
    """Write scores.json and report.html into this folder."""

    def check(self) -> None:
        require(self, "hold_out", lambda v: 0 < v < 1, "more than 0, less than 1")
        require(self, "labels", lambda v: v and all(0 < f <= 1 for f in v), "fractions more than 0, at most 1")
        require(self, "probes", lambda v: len(v) > 0, "at least one")
        for name, least in {"knn_k": 1, "image_size": 8, "batch_size": 1, "workers": 0, "seed": 0}.items():
            require(self, name, lambda v, least=least: v >= least, f"at least {least}")
        for name in ("knn_temperature", "epochs", "lr"):
            require(self, name, lambda v: v > 0, "more than 0")
        require(self, "wd", lambda v: v >= 0, "0 or more")
        for name in ("labels", "probes"):
            given = getattr(self, name)
            if twice := [v for i, v in enumerate(given) if v in given[:i]]:
                raise InputError(f"--{name} names {twice[0]} twice.")


def run(config: Config) -> dict[str, Any]:
    """Embed, learn, judge, print; returns protocol, scores, and by probe the figures of classes and the confusions."""
    import torch

    from xmodal import distributed
    from xmodal.data.pictures import PictureColumns, open_to_judge
    from xmodal.encoders.image_tower import open_image_tower
    from xmodal.evaluators.evaluate_pictures import RawPixels
    from xmodal.evaluators.probes import geometry, probe
    from xmodal.evaluators.scores import print_classes, print_table, write_scores
    from xmodal.evaluators.zeroshot import per_class

    accelerator = distributed.start(config.precision)
    columns = PictureColumns(config.image_column, config.label_column, config.split_column)
    train, test = open_to_judge(config.data, config.test, config.hold_out, columns)
    torch.manual_seed(config.seed)
    tuned = "finetune" in config.probes
    model = open_image_tower(config.model, config.image_size, accelerator.device, frozen=not tuned)
    options: dict[str, Any] = {
        "probes": [p for p in config.probes if p != "finetune"],
        "fractions": config.labels,
        "k": config.knn_k,
        "temperature": config.knn_temperature,
    }
    found = probe(model, train, test, **options)
    spread, more = geometry(model, test, found.test)
    protocol, scores, tables = {"model": config.model, **found.protocol}, dict(found.scores), dict(found.tables)
    if config.pixels:
        beside = probe(RawPixels(), train, test, **options)
        scores |= {f"pixels/{name}": score for name, score in beside.scores.items()}
        protocol["pixels"] = "the same of 16 × 16 raw pixels without their mean"
    if tuned:
        told, by_tuning, confusions = fine_tune(config, model, train, test, found, accelerator)
        protocol["finetune"], scores, tables = told, scores | by_tuning, tables | confusions
    scores |= more
    protocol["geometry"] = spread
    classes = {
        name: {
            label: {figure: float(values[i]) for figure, values in per_class(table).items()}
            for i, label in enumerate(train.classes)
        }
        for name, table in tables.items()
    }
    if distributed.is_first():
        written = {"classes": classes, "confusion": {name: t.astype(int).tolist() for name, t in tables.items()}}
        if config.json:
            write_scores(config.json, protocol, scores, **written)
        if config.output:
            write_folder(config, protocol, scores, train.classes, tables, written)
        last = list(tables)[-1]
        print(f"{last.replace('_', ' ')}:")
        print_classes(train.classes, tables[last])
        print_table(protocol, scores)
    return {"protocol": protocol, "scores": scores, "classes": classes, "confusion": tables}


def fine_tune(
    config: Config, model: ImageTower, train: Pictures, test: Pictures, found: Probed, accelerator: Any
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """For each fraction of the labels, the network anew: what was done, its scores and its confusion matrices."""
    import copy

    import numpy as np
    import torch

    from xmodal.class_tuning import Tuning, tune
    from xmodal.evaluators.evaluate_pictures import embed_pictures, score_answers
    from xmodal.evaluators.linear import class_ranks, fit_linear
    from xmodal.evaluators.probes import labels_name

    augment = config.augment
    if augment == "auto":
        augment = "photo" if train.photographs else "drawing"
    tuning = Tuning(config.epochs, config.batch_size, config.lr, config.wd, augment, config.seed, config.workers)
    scores: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    kind, features = next(iter(found.train.items()))  # before the head, where there is one
    for fraction in config.labels:
        learnt = found.learnt[fraction]
        some = features.rows[torch.from_numpy(learnt)].to(model.encoder.device)
        start = fit_linear(some, features.labels[learnt], classes=len(train.classes))
        encoder = copy.deepcopy(model.encoder)
        tuned = tune(encoder, train, features.number[learnt], start, some, tuning, accelerator)
        judged = embed_pictures(tuned, test, found.test[kind].number[found.test[kind].labelled])
        rank, predicted = class_ranks(judged.rows, judged.labels)
        name = "/".join(filter(None, (labels_name(fraction, config.labels), "finetune")))
        scored, tables[name] = score_answers(rank, predicted, np.asarray(judged.labels), len(train.classes))
        scores |= {f"{name}/{figure}": score for figure, score in scored.items()}
    told = (
        "all weights, and a linear layer that begins as the linear probe where that is better than chance; "
        f"AdamW, {config.epochs:g} epochs, batch {config.batch_size}, learning rate {config.lr:g}, weight decay "
        f"{config.wd:g}, augmentation {augment}, seed {config.seed}"
    )
    return told, scores, tables


def write_folder(
    config: Config,
    protocol: dict[str, Any],
    scores: dict[str, Any],
    classes: list[str],
    tables: dict[str, Any],
    more: dict[str, Any],
) -> None:
    """scores.json and report.html, which `xmodal eval compare` sets beside those of others."""
    from xmodal.evaluators.scores import write_scores
    from xmodal.report.evaluated import Classified
    from xmodal.report.page import write_page

    assert config.output is not None
    write_scores(config.output / "scores.json", protocol, scores, **more)
    shown = {name: Classified(classes, table) for name, table in tables.items()}
    write_page(config.output, title=f"probe: {config.model}", protocol=protocol, scores=scores, evaluated=shown)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval probe"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
