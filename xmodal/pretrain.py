"""Image encoders trained on pictures without texts: the flags that these recipes share, and what stands behind them.

A recipe reads: `begin`, `open_data`, `open_encoder`, `view_batches`, its method, then `train_and_judge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.config import Shared, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    import torch

    from xmodal.data.pictures import Pictures
    from xmodal.data.view_batches import ViewBatches
    from xmodal.encoders.image import ImageEncoder
    from xmodal.evaluators.evaluate_pictures import Also
    from xmodal.method import Method
    from xmodal.run import Evaluation, Run

Optimizer = Literal["lars", "sgd", "adamw"]
Augment = Literal[
    "auto", "simclr", "moco_v2", "byol", "barlow_twins", "swav", "clip", "photo", "drawing", "glyphs", "none"
]
MOMENTUM: Any = 0.9  # of LARS and SGD in SimCLR, MoCo, BYOL, SwAV and Barlow Twins


@dataclass(frozen=True, kw_only=True)
class Pretraining(Shared):
    """Flags of a recipe that trains an image encoder."""

    data: str = "glyphs"
    """What to train on: glyphs, a folder of pictures (with a folder for each class, or not), a table, parquet or tar
    shards, here or at an address, or hf-dataset:NAME[,streaming]. Classes, where there are some, are for judging."""
    val: str | None = None
    """What to judge on instead of the data's own split val or test, or of what is held out."""
    hold_out: float = 0.1
    """The fraction of data without splits that is held out to judge on, the same in each class; 0: nothing."""
    model: str
    """small (a little residual network, fresh), timm:NAME[/random], timm:FOLDER, hf:ID_OR_FOLDER,
    open_clip:MODEL[/PRETRAINED], or the folder of a run."""
    image_size: int | None = None
    """Pixels a side, instead of those that --model takes; of small 32 if not given, 64 for larger photographs."""
    augment: Augment = "auto"
    """What makes the views, by the paper they are of; auto: this recipe's, of glyphs those for signs."""
    decode: Literal["fast", "exact"] = "fast"
    """How training reads JPEGs: fast, no finer than a picture's views need to be equal to 50 dB; exact, whole, as
    evaluation always does."""
    optimizer: Optimizer
    """lars and sgd have a momentum of 0.9."""
    lr: float
    """The highest learning rate of a global batch of 256; that of another is larger or smaller in proportion."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    warmup_epochs: float | None = None
    """Epochs over which it rises, instead of --warmup."""
    knn_k: int = 200
    """How many of the nearest training pictures vote for the class of one that is judged."""
    knn_temperature: float = 0.1
    """A vote counts exp(cosine / this)."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    label_column: str | None = None
    """The column of classes, if it has no usual name."""
    split_column: str | None = None
    """The column that says train, val or test, if it has no usual name."""

    def check(self) -> None:
        super().check()
        require(self, "hold_out", lambda v: 0 <= v < 1, "at least 0, less than 1")
        require(self, "image_size", lambda v: v >= 8, "at least 8")
        require(self, "warmup_epochs", lambda v: v >= 0, "0 or more")
        require(self, "knn_k", lambda v: v >= 1, "at least 1")
        require(self, "knn_temperature", lambda v: v > 0, "more than 0")

    def preset_for_machine(self) -> str:
        """What "auto" stands for: paper on a GPU for data of one's own, and for a model that is named; else quick."""
        named = self.model != next(f.default for f in dataclasses.fields(self) if f.name == "model")
        if self.model == "small" or (not named and (self.data == "glyphs" or not Path("/dev/nvidia0").exists())):
            return "quick"
        return "paper"


def open_data(config: Pretraining) -> tuple[Pictures, Pictures | None]:
    """What to train on, and what to judge on if there is something. Raises InputError."""
    from xmodal.data.pictures import PictureColumns, open_parts

    columns = PictureColumns(config.image_column, config.label_column, config.split_column)
    return open_parts(config.data, config.val, config.hold_out, columns)


def open_encoder(config: Pretraining, pictures: Pictures) -> ImageEncoder:
    """The encoder to begin with. Raises InputError for a spec that names none."""
    from xmodal.encoders.image import open_image_encoder

    side = config.image_size
    if side is None and config.model == "small":
        side = 64 if pictures.photographs and _shorter_side(pictures) > 48 else 32
    encoder = open_image_encoder(config.model, side)
    encoder.set_grad_checkpointing(config.grad_checkpointing)
    return encoder


def view_batches(
    config: Pretraining,
    this: Run,
    pictures: Pictures,
    encoder: ImageEncoder,
    name: Any,
    k: Callable[[Pictures, int], int] | int | None = None,
    single: bool = False,
) -> ViewBatches:
    """This process's part of each global batch of views.

    name: whose views they are if --augment says nothing. k: pictures of each class in a batch, which then holds
    batch / k classes, or how to find it from pictures and batch; without it pictures come at random. single: one view
    of each picture. Says what is left out.
    """
    from xmodal.data.class_order import ClassOrder
    from xmodal.data.orders import order_of
    from xmodal.data.view_batches import ViewBatches
    from xmodal.data.views import Views, views
    from xmodal.report.log import say

    if config.augment != "auto":
        name = config.augment
    elif config.data == "glyphs":
        name = "glyphs"
    shared, order = this.share(pictures), None
    if k is not None:
        assert pictures.labels is not None
        if getattr(order_of(pictures), "slides", False):
            raise InputError(
                f"{pictures.name} is read some row groups at a time, and batches by class take pictures from all of "
                "them. Download it: --data hf-dataset:ORG/NAME without ',streaming', or the files themselves."
            )
        order = ClassOrder(pictures.labels, shared["batch"], k if isinstance(k, int) else k(pictures, shared["batch"]))
        for lack, n in order.left_out.items():
            if n:
                say(f"Left out of {pictures.name}: {n} with {lack}.")
    made = views(name, encoder.preparation, exact=config.decode == "exact")
    if single:
        made = Views({"views": made.branches["views"][:1]}, made.exact)
    return ViewBatches(pictures, **shared, seed=config.seed, views=made, order=order)


def at_least(k: int, step: int = 1) -> Callable[[Pictures, int], int]:
    """So many pictures of each class in a batch, or the fewest steps more with which the classes there are fill it."""

    def found(pictures: Pictures, batch: int) -> int:
        import numpy as np

        assert pictures.labels is not None
        classes = int((np.bincount(pictures.labels[pictures.labels >= 0]) > 1).sum())
        enough = (more for more in range(k, batch // 2 + 1, step) if batch % more == 0 and batch // more <= classes)
        return next(enough, k)  # with which the order says what is wrong

    return found


def optimizer(config: Pretraining) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """From parameter groups. Groups without weight decay, gains and biases, are not adapted by LARS either.

    You et al. 2017 (arXiv:1708.03888); so do SimCLR (lars_optimizer.py), BYOL and Barlow Twins. Its trust coefficient
    is 0.001 in all three.
    """
    import torch

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if config.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=config.wd, eps=1e-6)
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, weight_decay=config.wd)
        from timm.optim.lars import Lars

        decay: Any = config.wd  # timm says int
        return Lars(groups, lr=config.lr, momentum=MOMENTUM, weight_decay=decay, trust_coeff=0.001)

    return build


def learning_rate(config: Pretraining, data: ViewBatches) -> Callable[[int], Callable[[int], float]]:
    """Up, then half a cosine down to nothing; the peak grows with the global batch (Goyal et al. 2017)."""
    from xmodal.schedule import cosine

    warmup = config.warmup
    if config.warmup_epochs is not None:
        warmup = round(config.warmup_epochs * data.steps_per_epoch)
    return lambda steps: cosine(config.lr * data.global_batch / 256, steps, warmup)


class Judge:
    """Says how an encoder's features separate the classes of pictures it wasn't trained on, with raw pixels beside."""

    def __init__(self, config: Pretraining, train: Pictures, held: Pictures | None, also: Also | None = None) -> None:
        """also: what else is said of the same features; see `evaluate_pictures`."""
        from xmodal.evaluators.evaluate_pictures import RawPixels, evaluate_pictures
        from xmodal.report.log import say

        if held is not None and (train.labels is None or held.labels is None):
            say(f"{train.name} has no classes: features are judged by their spread alone.")
        self.train, self.held = train, held
        self.options: dict[str, Any] = {"k": config.knn_k, "temperature": config.knn_temperature}
        self.pixels = {}
        if held is not None:
            _, scores, _ = evaluate_pictures(RawPixels(), train, held, **self.options)
            self.pixels = {name.replace("knn/", "pixels/"): s for name, s in scores.items() if "knn/" in name}
        self.options["also"] = also

    def __call__(self, encoder: ImageEncoder) -> Evaluation:
        """Nothing where nothing is held out."""
        from xmodal.evaluators.evaluate_pictures import evaluate_pictures
        from xmodal.report.evaluated import Classified
        from xmodal.run import Evaluation

        if self.held is None:
            return Evaluation({}, {})
        protocol, scores, table = evaluate_pictures(encoder, self.train, self.held, **self.options)
        shown: dict[str, Any] = {} if table is None else {"knn": Classified(self.train.classes, table)}
        if self.pixels:
            protocol["pixels"] = "the same of 16 × 16 raw pixels without their mean"
        return Evaluation(protocol, {**scores, **self.pixels}, shown)


def train_and_judge(config: Pretraining, this: Run, method: Method, data: ViewBatches, judge: Judge) -> dict[str, Any]:
    """Train the method and judge its encoder before and after; the protocol and the scores, as in the run folder."""
    export: Callable[[], Any] = method.export
    before = judge(export())
    this.train(
        method,
        data,
        optimizer=optimizer(config),
        lr=learning_rate(config, data),
        evaluate=lambda: judge(export()),
        clip_norm=None,
    )
    return this.finish(judge(export()), before)


def check_queue(size: int, data: ViewBatches) -> None:
    """Raises InputError for a queue of earlier batches that has no room for one; 0 is none."""
    if 0 < size < data.global_batch:
        raise InputError(
            f"--queue {size} has no room for a global batch of {data.global_batch}. "
            f"Choose a queue of {data.global_batch} or more, or a smaller --batch-size (per process)."
        )


def with_classes_only(pictures: Pictures, recipe: str) -> Pictures:
    """The pictures that have a class, for a recipe that learns from them. Says how many have none.

    Raises InputError where none has.
    """
    import numpy as np

    from xmodal.data.pictures import Part
    from xmodal.report.log import say

    if pictures.labels is None:
        raise InputError(
            f"{recipe} learns from classes, and {pictures.name} has none. Expected a folder with a folder for each "
            "class, or a column of classes; --label-column names it."
        )
    rows = np.flatnonzero(pictures.labels >= 0)
    if len(rows) == len(pictures):
        return pictures
    say(f"Left out of {pictures.name}: {len(pictures) - len(rows):,} pictures without a class.")
    return Part(pictures, rows)


def _shorter_side(pictures: Pictures) -> int:
    """Of the first pictures that can be read, in the middle."""
    import numpy as np

    from xmodal.errors import BadSample

    found = pictures.images(np.arange(min(16, len(pictures))))
    sides = [min(np.asarray(p).shape[:2]) for p in found if not isinstance(p, BadSample)]
    return int(np.median(sides)) if sides else 0
