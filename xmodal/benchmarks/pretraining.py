"""Training image encoders without labels: lightly's modules beside our recipes, from one start on one set of pictures.

What comes of it: both have the backbone, the pictures, the batch, optimizer, rates and steps alike, and see the same
views, ours; so what differs are heads, losses and momentum updates. How long it takes: each makes views with its own
code and as many workers. Judged is by the same k-NN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xmodal import run as runs
from xmodal.benchmarks.timing import Others, machine, summed_up
from xmodal.data.pictures import Pictures
from xmodal.encoders.image import ImageEncoder, open_image_encoder
from xmodal.errors import BadSample, InputError
from xmodal.evaluators.evaluate_pictures import RawPixels, evaluate_pictures
from xmodal.pretrain import learning_rate, open_data, open_encoder, optimizer, view_batches

SKIPPED = 5  # steps that don't count: first allocations, workers that start
TIMED = 20

PretrainingName = Literal["simclr", "moco", "byol", "barlow_twins"]


def compare(
    method: PretrainingName, data: str, *, epochs: float, workers: int, precision: str, seeds: Sequence[int]
) -> dict[str, Any]:
    """Seconds an epoch and k-NN top-1 of both, for each seed; as plain data.

    The recipe's preset `quick` says the rest. Raises InputError for data without classes.
    """
    recipe = importlib.import_module(f"xmodal.train.{method}")
    told = {"epochs": epochs, "workers": workers, "precision": precision, "data": data, "save_every": 0}
    config = recipe.Config(**recipe.PRESETS["quick"] | told)
    train, held = open_data(config)
    if held is None or train.labels is None or held.labels is None:
        raise InputError(f"{data} has no classes to judge by. Expected labelled pictures, such as CIFAR-10's.")
    judged: dict[str, list[dict[str, Any]]] = {who: [] for who in ("raw pixels", "untrained", "xmodal", "lightly")}
    seconds: dict[str, list[float]] = {"xmodal": [], "lightly": []}

    def judge(who: str, model: Any) -> None:
        judged[who].append(evaluate_pictures(model, train, held)[1]["knn/top1"])

    with tempfile.TemporaryDirectory(prefix="xmodal-speed-") as name, Others() as others:
        judge("raw pixels", RawPixels())
        for number, seed in enumerate(seeds):
            torch.manual_seed(seed)
            start = open_encoder(config, train)
            judge("untrained", start.eval())
            both = Both(method, dataclasses.replace(config, seed=seed), train, start, Path(name) / f"{seed}")
            for who, run in [("xmodal", both.ours), ("lightly", both.theirs)][:: -1 if number % 2 else 1]:
                model, each = run()
                seconds[who].append(each * both.data.steps_per_epoch)
                judge(who, model)
    return {
        "what": f"{method}: an epoch, and what comes of {epochs:g}",
        "protocol": {
            "data": f"{train.name}: {len(train):,} pictures; judged: {len(held):,}",
            "backbone": f"{config.model}, fresh, the same weights for both",
            "epochs": epochs,
            "batch size": config.batch_size,
            "type": precision,
            "optimizer": f"{config.optimizer}, rate {config.lr:g} of a batch of 256, weight decay {config.wd:g}",
            "ours": f"xmodal train {method} --preset quick",
            "theirs": "lightly's heads, loss and momentum update in a plain loop, settings alike, on our views",
            "seconds": f"an epoch with views of its own: the mean step after {SKIPPED}; of theirs {TIMED} steps a seed",
            "workers": f"{workers} each",
            "threads": torch.get_num_threads(),
            "scores": f"k-NN top-1 ×100, mean ± standard deviation over seeds {', '.join(map(str, seeds))}",
            **machine(),
            "CPU taken by others": others.said(),
        },
        **summed_up(seconds),
        "columns": {who: {"k-NN": _told(scores)} for who, scores in judged.items()},
        "scores": judged,
        "peak bytes": {},
    }


class Both:
    """A recipe and lightly's way with one seed: encoders trained from one start, and seconds a step."""

    def __init__(self, method: str, config: Any, train: Pictures, start: ImageEncoder, folder: Path) -> None:
        self.method, self.config, self.train, self.start = method, config, train, start
        start.save(folder / "start")
        self.run = runs.begin(method, dataclasses.replace(config, output=folder / "run"))
        self.recipe = importlib.import_module(f"xmodal.train.{method}")
        self.encoder = open_image_encoder(str(folder / "start"))
        name = "moco_v2" if method == "moco" else method
        self.data = view_batches(config, self.run, train, self.encoder, name)
        self.steps = max(1, round(config.epochs * self.data.steps_per_epoch))

    def ours(self) -> tuple[ImageEncoder, float]:
        method = getattr(self.recipe, self.method)(self.config, self.encoder)
        rate = learning_rate(self.config, self.data)
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.train(method, self.data, optimizer=optimizer(self.config), lr=rate, clip_norm=None)
        lines = [json.loads(line) for line in (self.run.folder / "metrics.jsonl").read_text().splitlines()]
        each = [self.config.batch_size / line["pairs_per_second"] for line in lines if "loss" in line]
        return method.export().eval(), statistics.mean(each[SKIPPED:])

    def theirs(self) -> tuple[ImageEncoder, float]:
        """Trained on our views; the seconds are those of some steps on its own."""
        from xmodal.benchmarks import lightly_recipes as lightly

        rate = learning_rate(self.config, self.data)(self.steps)
        model, _ = lightly.train(self.method, self.config, self.start, self._views(), self.steps, rate)
        own = lightly.own_views(
            *(self.method, self.start, _pixels(self.train)), batch=self.config.batch_size, workers=self.config.workers
        )
        some = itertools.islice(own, SKIPPED + TIMED)
        _, ends = lightly.train(self.method, self.config, self.start, some, self.steps, rate)
        return model, statistics.mean(np.diff(ends)[SKIPPED - 1 :])

    def _views(self) -> Iterator[list[Tensor]]:
        """What ours sees, normalised as theirs takes it: two (b, 3, h, w)."""
        loader = DataLoader(self.data, batch_size=None, sampler=range(self.steps), num_workers=self.config.workers)
        for batch, _ in loader:
            yield [(view.float() / 255 - self.start.mean) / self.start.std for view in batch["views"].unbind(1)]


def _told(scores: Sequence[dict[str, Any]]) -> str:
    values = [100 * score["value"] for score in scores]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _pixels(pictures: Pictures) -> np.ndarray:
    """All of them, decoded (n, h, w, 3) uint8. Raises InputError where they differ in size."""
    found = [np.asarray(p) for p in pictures.images(np.arange(len(pictures))) if not isinstance(p, BadSample)]
    if len({p.shape for p in found}) != 1:
        raise InputError(f"{pictures.name} has pictures of several sizes. Expected one, such as CIFAR-10's.")
    return np.stack(found)
