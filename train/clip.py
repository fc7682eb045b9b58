"""CLIP: an image and a text encoder trained to find each other's pair among all pairs of a batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020).

    xmodal train clip                                                  glyphs, ten minutes on two cores
    xmodal train clip --data captions.csv                              your own pairs, from scratch
    xmodal train clip --data captions.csv --model open_clip:ViT-B-32   another pair of towers
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
from xmodal.config import Shared, parse, require

if TYPE_CHECKING:
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    # Radford et al. 2021, tables 18 and 20 (ViT-B/32); the batch is the global one, on one process.
    model: str = "open_clip:ViT-B-32"
    """The towers: small, open_clip:MODEL[/PRETRAINED], open_clip:local-dir:FOLDER, or a run folder to start from."""
    preset: Literal["auto", "paper", "quick", "finetune"] = "auto"
    """paper: the defaults listed here. quick: from scratch on two CPU cores. finetune: from pretrained towers.
    auto: finetune if --model has weights, else quick for built-in data or without a GPU, else paper."""
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
    image_size: int | None = None
    """Pixels a side of `small`: 16 times a power of two. 32 if not given, 64 for photographs."""
    vocabulary: int = 1500
    """Pieces of `small`'s tokenizer."""
    lock_image: bool = False
    """Leave the image tower as it is (Zhai et al. 2022, LiT)."""
    lock_text: bool = False
    """Leave the text tower as it is."""
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


PRESETS: dict[str, dict[str, Any]] = {
    # Measured on glyphs; see the README.
    "quick": {"model": "small", "batch_size": 512, "epochs": 22, "lr": 2e-3, "wd": 0.3, "warmup": 100},
    # Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv:2109.01903), section 4 and appendix.
    "finetune": {"batch_size": 512, "epochs": 10, "lr": 3e-5, "wd": 0.1, "warmup": 500},
}


def clip(config: Config, towers: TwoTower) -> Method:
    """The method: both towers, one learnable temperature, symmetric InfoNCE over the global batch."""
    import torch
    from torch import Tensor, nn

    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import clip_loss, info_nce_floor

    class Clip(Method):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers
            self.log_scale = nn.Parameter(towers.log_scale.clone())  # ln(1 / 0.07) unless pretrained

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            return self.towers(image=batch["image"], text=batch["text"])  # (b, d) unit, each

        def targets(self, batch: Batch) -> dict[str, Tensor]:
            return {"image_id": batch["image_id"], "text_id": batch["text_id"]}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            scale = self.log_scale.exp()
            loss = clip_loss(
                representations["image"],
                representations["text"],
                scale,
                image_id=targets["image_id"],
                text_id=targets["text_id"],
                positives=config.positives,
            )
            metrics: dict[str, float | Tensor] = {"scale": scale.detach()}
            if config.positives == "uniform":
                metrics["floor"] = info_nce_floor(targets["image_id"], targets["text_id"])
            return loss, metrics

        @torch.no_grad()
        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            self.log_scale.clamp_(0, math.log(100))  # section 2.5: logits are never scaled by more than 100

        def export(self) -> TwoTower:
            towers.log_scale.copy_(self.log_scale.detach())
            return towers

    return Clip()


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns the protocol and the scores, which are also in the run folder."""
    import torch

    from xmodal import run as runs
    from xmodal.data.augment import augmentation
    from xmodal.data.source import Columns, captions, open_pairs
    from xmodal.distributed import first_says
    from xmodal.encoders import build
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.report.log import say
    from xmodal.schedule import cosine

    this = runs.begin("clip", config)
    columns = Columns(config.image_column, config.caption_column, config.split_column)
    pairs, tests = open_pairs(config.data, config.val, columns)

    def train_tokenizer() -> PiecesTokenizer:
        return first_says(PiecesTokenizer.train(captions(pairs), config.vocabulary))

    if config.model == "small" and pairs.photographs:
        say("Photographs: `small` learns little from them. Better start from --model open_clip:ViT-B-32/openai")
    side = config.image_size or (64 if pairs.photographs else 32)
    towers = build(config.model, train_tokenizer=train_tokenizer, side=side)
    for name in ("image", "text"):
        if getattr(config, f"lock_{name}"):
            towers.lock(name)
    towers.set_grad_checkpointing(config.grad_checkpointing)
    method = clip(config, towers)

    view = augmentation(_augment(config, pairs), towers.preparation)
    data = this.batches(pairs, view, towers.tokenizer)

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
    return this.finish(*evaluate(method.export(), tests))


def evaluate(towers: TwoTower, tests: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Retrieval on every test; where the built-in data has classes, zero-shot classification, too."""
    from xmodal.data import glyphs
    from xmodal.evaluators.evaluate import evaluate_retrieval, evaluate_zero_shot, together

    results = {name: evaluate_retrieval(towers, source) for name, source in tests.items()}
    if "unseen_typeface" in tests:
        kinds = glyphs.Kinds("unseen_typeface")
        protocol, scores, _ = evaluate_zero_shot(towers, kinds, kinds.classes, glyphs.TEMPLATES)
        results["zero_shot"] = {**protocol, "typefaces": glyphs.versions()}, scores
    return together(results)


def _augment(config: Config, pairs: Any) -> str:
    if config.augment != "auto":
        return config.augment
    if config.data == "glyphs":
        return "glyphs"
    if config.model != "small":
        return "clip"
    return "photo" if pairs.photographs else "drawing"


def preset(config: Config) -> str:
    """What "auto" stands for."""
    has_weights = "/" in config.model or config.model.startswith(("open_clip:local-dir:", "open_clip:hf-hub:"))
    if has_weights or Path(config.model).is_dir():
        return "finetune"
    if config.data == "glyphs" or not Path("/dev/nvidia0").exists():
        return "quick"
    return "paper"


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train clip", presets=PRESETS, choose_preset=preset))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
