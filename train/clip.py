"""CLIP: an image and a text encoder trained to find each other's pair among all pairs of a batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020).

    xmodal train clip                                            glyphs, ten minutes on two cores
    xmodal train clip --data captions.csv                        your own pairs, from scratch
    xmodal train clip --data captions.csv --model open_clip:ViT-B-32/openai --lora 16
    xmodal train clip --data captions.csv --image-tower timm:vit_small_patch16_224 --lock-image \\
                      --text-tower st:all-MiniLM-L6-v2 --lock-text --head mlp
    torchrun --nproc_per_node 8 -m xmodal.train.clip --data captions.csv --preset paper --batch-size 4096
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.finetune import FineTuning, Towers, embed_locked, open_towers
from xmodal.interop.open_clip_flags import expand

if TYPE_CHECKING:
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.method import Method
    from xmodal.run import Evaluation


@dataclass(frozen=True, kw_only=True)
class Config(FineTuning):
    # Radford et al. 2021, tables 18 and 20 (ViT-B/32); the batch is the global one, on one process.
    model: str = "open_clip:ViT-B-32"
    """Both towers: small, open_clip:MODEL[/PRETRAINED], hf:ID_OR_FOLDER, or a run folder to start from."""
    preset: Literal["auto", "paper", "quick", "finetune", "lora", "heads"] = "auto"
    """paper: the defaults listed here. quick: from scratch on two CPU cores. finetune, lora: from pretrained towers,
    all of their weights or adapters. heads: fresh heads on pretrained towers. auto: lora with --lora, heads with
    --image-tower, finetune if --model has weights, else quick for built-in data or without a GPU, else paper."""
    batch_size: int = 32768
    epochs: float = 32
    lr: float = 5e-4
    wd: float = 0.2
    warmup: int = 2000
    beta1: float = 0.9
    """AdamW's momentum."""
    beta2: float = 0.98
    """AdamW's second momentum."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip_norm: float = 1.0
    """The largest norm of the gradient; 0 leaves it as it is."""
    positives: Literal["uniform", "mask"] = "uniform"
    """What equal images or captions of a batch are: uniform, positives as well; mask, left out of the negatives."""
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
    from_open_clip: str | None = None
    """A command line of open_clip_train, in quotes: its flags become ours, and what has no place here is said."""

    def check(self) -> None:
        super().check()
        require(self, "clip_norm", lambda v: v >= 0, "0 or more")
        require(self, "image_size", lambda v: v in (32, 64, 128, 256, 512), "one of 32, 64, 128, 256, 512")
        require(self, "vocabulary", lambda v: v >= 64, "at least 64")
        require(self, "captions", lambda v: v == "all" or v >= 1, "at least 1, or all")
        require(self, "weights", lambda v: all(0 < w < math.inf for w in v), "numbers above 0")


PRESETS: dict[str, dict[str, Any]] = {
    # Measured on glyphs; see the README.
    "quick": {"model": "small", "batch_size": 512, "epochs": 22, "lr": 2e-3, "wd": 0.3, "warmup": 100},
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


def clip(config: Config, opened: Towers) -> Method:
    """The method: both towers, one learnable temperature, symmetric InfoNCE over the global batch."""
    import torch
    from torch import Tensor, nn

    from xmodal.encoders.average import Average
    from xmodal.encoders.trainable import parameter_groups
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import clip_loss, info_nce_floor

    towers = opened.module

    class Clip(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers
            self.log_scale = nn.Parameter(towers.log_scale.clone())  # ln(1 / 0.07) unless pretrained
            self.average = Average(towers, config.ema) if config.ema is not None else None

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            if "text_there" not in batch:
                return self.towers(image=batch["image"], text=batch["text"])  # (b, d) unit, each; text may be (b, k, d)
            there = batch["text_there"]  # (b, k): only texts that are there are encoded
            rows = self.towers(image=batch["image"], text=batch["text"][there])  # (b, d) and (m, d) unit
            places = rows["text"].new_zeros(*there.shape, rows["text"].shape[-1])
            return {**rows, "text": places.index_put((there,), rows["text"])}

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            return {name: batch[name] for name in ("image_id", "text_id", "text_there") if name in batch}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            scale = self.log_scale.exp()
            image, text = representations["image"], representations["text"]
            image_id, text_id = targets["image_id"], targets["text_id"]
            if text.ndim == 3:  # an image stands once beside each of its captions, and is a positive of them all
                there = targets.get("text_there", torch.ones_like(text_id, dtype=torch.bool))  # (b, k)
                image, image_id = (x.repeat_interleave(there.sum(1), 0) for x in (image, image_id))
                text, text_id = text[there], text_id[there]
            loss = clip_loss(image, text, scale, image_id=image_id, text_id=text_id, positives=config.positives)
            metrics: dict[str, float | Tensor] = {"scale": scale.detach()}
            if config.positives == "uniform":
                metrics["floor"] = info_nce_floor(image_id, text_id)
            return loss, metrics

        @torch.no_grad()
        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            self.log_scale.clamp_(0, math.log(100))  # section 2.5: logits are never scaled by more than 100
            if self.average is not None:
                self.average.follow(towers, progress.step)

        def export(self) -> TwoTower:
            trained: Any = towers if self.average is None else self.average.module
            trained.log_scale.copy_(self.log_scale.detach())
            return opened.finished(trained)

        def parameter_groups(self) -> list[dict[str, Any]]:
            return parameter_groups(self, towers, layer_decay=config.layer_decay, backbone_lr=config.backbone_lr)

    return Clip()


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns the protocol and the scores, which are also in the run folder."""
    import torch

    from xmodal import run as runs
    from xmodal.data.augment import augmentation
    from xmodal.data.source import Columns, captions, open_pairs
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.report.log import say
    from xmodal.schedule import cosine

    this = runs.begin("clip", config)
    columns = Columns(config.image_column, config.caption_column, config.split_column)
    pairs, tests = open_pairs(config.data, config.val, columns, config.weights)

    def train_tokenizer() -> PiecesTokenizer:
        return this.tokenizer(lambda: PiecesTokenizer.train(captions(pairs), config.vocabulary))

    if config.model == "small" and not config.image_tower and pairs.photographs:
        say("Photographs: `small` learns little from them. Better start from --model open_clip:ViT-B-32/openai")
    side = config.image_size or (64 if pairs.photographs else 32)
    towers = open_towers(config, train_tokenizer, side)
    method: Any = clip(config, towers)
    before = evaluate(method.export(), tests) if config.pretrained and not config.image_tower else None

    augment = _augment(config, pairs)
    view = augmentation(augment, towers.module.preparation, exact=config.decode == "exact")
    source, view, tokenize = embed_locked(towers.module, pairs, view, augmented=augment != "none")
    data = this.batches(source, view, tokenize, config.captions)

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


def _augment(config: Config, pairs: Any) -> str:
    if config.augment != "auto":
        return config.augment
    if config.lock_image and not config.unlock_image:
        return "none"  # a tower that stays as it is embeds every picture once
    if config.data == "glyphs":
        return "glyphs"
    if config.model != "small" or config.image_tower:
        return "clip"
    return "photo" if pairs.photographs else "drawing"


def preset(config: Config) -> str:
    """What "auto" stands for."""
    if config.pretrained:
        return "lora" if config.lora is not None else "heads" if config.image_tower else "finetune"
    if config.data == "glyphs" or not Path("/dev/nvidia0").exists():
        return "quick"
    return "paper"


def main(argv: Sequence[str] | None = None) -> int:
    given = expand(sys.argv[1:] if argv is None else argv)
    run(parse(Config, given, prog="xmodal train clip", presets=PRESETS, choose_preset=preset))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
