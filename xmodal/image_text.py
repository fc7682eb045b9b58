"""Image and text towers trained on pairs: the flags that these recipes share, and what stands behind them.

A recipe reads: `begin`, `open_data`, `open_model`, its method, then `train_and_judge`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.config import require
from xmodal.finetune import FineTuning, Towers, embed_locked, open_towers

if TYPE_CHECKING:
    from xmodal.data.source import Source
    from xmodal.data.views import Views
    from xmodal.embedding.teacher import Teacher
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.run import Evaluation, Run

# Presets from towers that exist; the loss makes no difference to them.
PRETRAINED: dict[str, dict[str, Any]] = {
    # Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv:2109.01903), section 4 and appendix.
    "finetune": {"batch_size": 512, "epochs": 10, "lr": 3e-5, "wd": 0.1, "warmup": 500},
    # Ours: adapters begin at nothing and take a rate some ten times that of whole weights.
    "lora": {"batch_size": 512, "epochs": 10, "lr": 3e-4, "wd": 0.0, "warmup": 50},
    # Measured on Flickr8k; see the README.
    "heads": {
        **{"head": "mlp", "head_dropout": 0.5, "backbone_lr": 0.03},
        **{"batch_size": 1024, "epochs": 60, "lr": 2e-3, "wd": 0.1, "warmup": 20},
    },
}


@dataclass(frozen=True, kw_only=True)
class ImageText(FineTuning):
    """Flags of a recipe that trains an image and a text tower on pairs."""

    preset: Literal["auto", "paper", "quick", "finetune", "lora", "heads"] = "auto"
    """paper: the defaults listed here. quick: from scratch on two CPU cores. finetune, lora: from pretrained towers,
    all of their weights or adapters. heads: fresh heads on pretrained towers. auto: lora with --lora, heads with
    --image-tower, finetune if --model has weights, else quick for built-in data or without a GPU, else paper."""
    beta1: float = 0.9
    """AdamW's momentum."""
    beta2: float
    """AdamW's second momentum."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip_norm: float = 1.0
    """The largest norm of the gradient; 0 leaves it as it is."""
    augment: Literal["auto", "none", "clip", "photo", "drawing", "glyphs"] = "auto"
    """What training does to pictures; auto goes by the data and the towers."""
    decode: Literal["fast", "exact"] = "fast"
    """How training reads JPEGs: fast, no finer than the view needs to be equal to 50 dB; exact, whole, as evaluation
    always does."""
    image_size: int | None = None
    """Pixels a side of `small`: 16 times a power of two. 32 if not given, 64 for photographs."""
    vocabulary: int = 1500
    """Pieces of `small`'s tokenizer."""
    captions: int | Literal["all"] = 1
    """How many captions of each image are in a batch, all of them its positives; all: as many as it has."""
    weights: tuple[float, ...] = ()
    """For each of the sources that --data names with :: between, of how many times its rows an epoch has. 2.5: every
    row twice and half of them, others each epoch, once more. 1 each if not given."""
    image_column: str | None = None
    """The table's column of image paths, if it has no usual name."""
    caption_column: str | None = None
    """The table's column of captions, if it has no usual name."""
    split_column: str | None = None
    """The table's column that says train, val or test, if it has no usual name."""

    def check(self) -> None:
        super().check()
        require(self, "clip_norm", lambda v: v >= 0, "0 or more")
        require(self, "image_size", lambda v: v in (32, 64, 128, 256, 512), "one of 32, 64, 128, 256, 512")
        require(self, "vocabulary", lambda v: v >= 64, "at least 64")
        require(self, "captions", lambda v: v == "all" or v >= 1, "at least 1, or all")
        require(self, "weights", lambda v: all(0 < w < math.inf for w in v), "numbers above 0")

    def preset_for_machine(self) -> str:
        """What "auto" stands for."""
        if self.pretrained:
            return "lora" if self.lora is not None else "heads" if self.image_tower else "finetune"
        if self.data == "glyphs" or not Path("/dev/nvidia0").exists():
            return "quick"
        return "paper"


def open_data(config: ImageText) -> tuple[Source, dict[str, Source]]:
    """What to train on, and what to evaluate on by name. Raises InputError."""
    from xmodal.data.source import Columns, open_pairs

    columns = Columns(config.image_column, config.caption_column, config.split_column)
    return open_pairs(config.data, config.val, columns, config.weights)


def open_model(config: ImageText, this: Run, pairs: Source) -> Towers:
    """The towers to begin with; `small` learns its tokenizer from the captions. Raises InputError."""
    from xmodal.data.source import captions
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.report.log import say

    def train_tokenizer() -> PiecesTokenizer:
        return this.tokenizer(lambda: PiecesTokenizer.train(captions(pairs), config.vocabulary))

    if config.model == "small" and not config.image_tower and pairs.photographs:
        say("Photographs: `small` learns little from them. Better start from --model open_clip:ViT-B-32/openai")
    return open_towers(config, train_tokenizer, config.image_size or (64 if pairs.photographs else 32))


def train_and_judge(
    config: ImageText,
    this: Run,
    method: Any,
    towers: Towers,
    pairs: Source,
    tests: dict[str, Source],
    views: Views | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Train a method and evaluate what it exports; returns the protocol and the scores.

    views: what a batch has of each picture beside the one that goes with the text. teacher: whose rows it has, too.
    """
    import torch

    from xmodal.data.augment import augmentation
    from xmodal.report.log import say
    from xmodal.schedule import cosine

    before = evaluate(method.export(), tests) if config.pretrained and not config.image_tower else None
    augment = _augment(config, pairs)
    view: Callable[..., Any] = augmentation(augment, towers.module.preparation, exact=config.decode == "exact")
    source, view, tokenize = embed_locked(towers.module, pairs, view, augmented=augment != "none")
    data: Any = this.batches(teacher.of(source) if teacher else source, view, tokenize, config.captions, views)
    data = teacher.beside(data) if teacher else data
    this.train(
        method,
        data,
        optimizer=lambda groups: torch.optim.AdamW(
            groups, weight_decay=config.wd, betas=(config.beta1, config.beta2), eps=config.eps
        ),
        lr=lambda steps: cosine(config.lr, steps, config.warmup),
        clip_norm=config.clip_norm or None,
        evaluate=lambda: evaluate(method.export(), tests),
    )
    if not tests:
        say("Nothing was held out to evaluate on: give the table a split column, or --val another table.")
    scan = towers.scan(method.export, lambda model: evaluate(model, tests).scores)
    return this.finish(evaluate(method.export(), tests), before, scan)


def evaluate(towers: TwoTower, tests: dict[str, Any]) -> Evaluation:
    """Retrieval on every test; where the built-in data has classes, zero-shot classification, too."""
    from xmodal.data import glyphs
    from xmodal.evaluators.embed import embed_pairs
    from xmodal.evaluators.evaluate import evaluate_zero_shot, score_retrieval, together
    from xmodal.report.evaluated import Classified, Evaluated
    from xmodal.run import Evaluation

    shown: dict[str, Evaluated | Classified] = {}
    results = {}
    for name, source in tests.items():
        embedded = embed_pairs(towers, source)
        results[name], shown[name] = score_retrieval(embedded, source.name), Evaluated(source, embedded)
    if "unseen_typeface" in tests:
        kinds = glyphs.Kinds("unseen_typeface")
        protocol, scores, confusion = evaluate_zero_shot(towers, kinds, kinds.classes, glyphs.TEMPLATES)
        results["zero_shot"] = {**protocol, "typefaces": glyphs.versions()}, scores
        shown["zero_shot"] = Classified(kinds.classes, confusion)
    return Evaluation(*together(results), shown)


def _augment(config: ImageText, pairs: Source) -> str:
    if config.augment != "auto":
        return config.augment
    if config.lock_image and not config.unlock_image:
        return "none"  # a tower that stays as it is embeds every picture once
    if config.data == "glyphs":
        return "glyphs"
    if config.model != "small" or config.image_tower:
        return "clip"
    return "photo" if pairs.photographs else "drawing"
