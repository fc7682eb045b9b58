"""Starting from towers that exist: the flags that recipes with two towers share, and what they do to the towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from xmodal.config import Shared, require
from xmodal.errors import InputError
from xmodal.flags import flag

if TYPE_CHECKING:
    from torch import Tensor

    from xmodal.data.source import Source
    from xmodal.encoders.interpolate import State
    from xmodal.encoders.two_tower import TwoTower

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Shared):
    """Flags of a recipe that trains an image and a text tower."""

    model: str
    """Both towers: small, open_clip:MODEL[/PRETRAINED], hf:ID_OR_FOLDER, or a run folder to start from."""
    image_tower: str | None = None
    """Instead of --model, with --text-tower: timm:NAME_OR_FOLDER, hf:ID_OR_FOLDER or open_clip:MODEL[/PRETRAINED]."""
    text_tower: str | None = None
    """st:ID_OR_FOLDER (sentence-transformers), hf:ID_OR_FOLDER or open_clip:MODEL[/PRETRAINED]."""
    head: Literal["linear", "mlp"] = "linear"
    """What joins --image-tower and --text-tower: one matrix on each, or two layers."""
    embed_dim: int = 512
    """Width of the space in which --image-tower and --text-tower meet."""
    head_dropout: float = 0.0
    """Dropout of the features that come into the heads, and of the layer inside heads of two."""
    lock_image: bool = False
    """Leave the image tower as it is (Zhai et al. 2022, LiT); with --image-tower its head is trained."""
    lock_text: bool = False
    """Leave the text tower as it is; with --text-tower its head is trained."""
    unlock_image: int = 0
    """With --lock-image: train so many of the last layers, and what comes after them."""
    unlock_text: int = 0
    """With --lock-text: the same of the text tower."""
    lora: int | None = None
    """Train low-rank adapters of this rank instead of the towers' weights, in towers that are not locked."""
    lora_on: Literal["attention", "all"] = "attention"
    """Which maps of a layer have adapters: those of attention, or all."""
    layer_decay: float = 1.0
    """Each layer learns at so much of the rate of the one above it."""
    backbone_lr: float = 1.0
    """Towers below fresh heads learn at so much of --lr."""
    ema: float | None = None
    """Keep and export the average of the weights over steps with this decay, such as 0.999."""
    wise_ft: float | None = None
    """Export weights so far from the first to the trained ones (Wortsman et al. 2022: 0.5), with the scan from 0 to 1
    on the evaluation data in the report."""

    def check(self) -> None:
        super().check()
        if (self.image_tower is None) != (self.text_tower is None):
            given, other = ("image", "text") if self.image_tower else ("text", "image")
            raise InputError(f"--{given}-tower needs an --{other}-tower beside it." if other == "image" else
                             f"--{given}-tower needs a --{other}-tower beside it.")  # fmt: skip
        for which in ("image", "text"):
            if getattr(self, f"unlock_{which}") and not getattr(self, f"lock_{which}"):
                raise InputError(f"--unlock-{which} leaves layers of a locked tower open: add --lock-{which}.")
        if self.lora is not None and self.lock_image and self.lock_text:
            raise InputError("--lora has no tower to adapt: both are locked.")
        require(self, "embed_dim", lambda v: v >= 1, "at least 1")
        require(self, "lora", lambda v: v >= 1, "at least 1")
        require(self, "layer_decay", lambda v: 0 < v <= 1, "more than 0, at most 1")
        require(self, "backbone_lr", lambda v: 0 < v <= 1, "more than 0, at most 1")
        for name in ("ema", "wise_ft"):
            require(self, name, lambda v: 0 <= v <= 1, "between 0 and 1")
        for name in ("unlock_image", "unlock_text"):
            require(self, name, lambda v: v >= 0, "0 or more")
        require(self, "head_dropout", lambda v: 0 <= v < 1, "at least 0, less than 1")
        if self.image_tower is not None and self._was_set("model"):
            raise InputError(f"--model {self.model} and --image-tower both name an image tower: give one of them.")
        if self.wise_ft is not None and (self.image_tower is not None or not self.pretrained):
            raise InputError("--wise-ft goes back to the weights that a model came with: give a --model that has some.")
        for needed, names in {
            "image_tower": ("head", "embed_dim", "head_dropout", "backbone_lr"),
            "lora": ("lora_on",),
        }.items():
            for name in names:
                if getattr(self, needed) is None and self._was_set(name):
                    raise InputError(f"{flag(name)} {getattr(self, name)} means nothing without {flag(needed)}.")

    def _was_set(self, name: str) -> bool:
        return getattr(self, name) != next(f.default for f in fields(self) if f.name == name)

    @property
    def pretrained(self) -> bool:
        """Whether the towers come with weights, as far as the spec tells."""
        named = self.model
        return self.image_tower is not None or (
            "/" in named.removeprefix("hf:")
            or named.startswith(("hf:", "hub:", "open_clip:local-dir:", "open_clip:hf-hub:"))
            or Path(named).is_dir()
        )


@dataclass
class Towers:
    """The towers that are trained; and, for WiSE-FT, the weights they came with and how far from them to go."""

    module: TwoTower
    first: State | None = None
    alpha: float = 1.0

    def finished(self, trained: TwoTower) -> TwoTower:
        """The plain towers to evaluate and save: adapters merged, weights between the first and the trained ones."""
        from xmodal.encoders.interpolate import between
        from xmodal.encoders.lora import merged

        trained = merged(trained)
        return trained if self.first is None else between(self.first, trained, self.alpha)

    def scan(self, export: Callable[[], TwoTower], score: Callable[[TwoTower], R]) -> dict[float, R]:
        """What the towers score at 0, 0.1 … 1 of the way; nothing unless there are weights to go back to."""
        from xmodal.report.log import say

        kept, found = self.alpha, {}
        if self.first is not None:
            say("Scoring weights at 0, 0.1 … 1 of the way from the first to the trained ones.")
        for tenth in range(11) if self.first is not None else ():
            self.alpha = tenth / 10
            found[self.alpha] = score(export())
        self.alpha = kept
        return found


def open_towers(config: FineTuning, train_tokenizer: Callable[[], Any], side: int) -> Towers:
    """Build the towers of a configuration, and lock, unlock and adapt what it says. Raises InputError."""
    from xmodal.encoders import build
    from xmodal.encoders.interpolate import state_of
    from xmodal.encoders.lora import add_lora
    from xmodal.encoders.pair import paired_towers
    from xmodal.encoders.trainable import lock
    from xmodal.report.log import say

    if config.image_tower is not None and config.text_tower is not None:
        towers = paired_towers(
            config.image_tower,
            config.text_tower,
            head=config.head,
            d=config.embed_dim,
            dropout=config.head_dropout,
        )
    else:
        towers = build(config.model, train_tokenizer=train_tokenizer, side=side)
    first = state_of(towers) if config.wise_ft is not None else None
    locked = [which for which in ("image", "text") if getattr(config, f"lock_{which}")]
    for which in locked:
        lock(towers, which, getattr(config, f"unlock_{which}"))
    if config.lora is not None:
        adapted = tuple(which for which in ("image", "text") if which not in locked)
        add_lora(towers, config.lora, where=config.lora_on, only=adapted)
    towers.set_grad_checkpointing(config.grad_checkpointing)
    every = list(towers.parameters())
    trained, total = (sum(p.numel() for p in ps) for ps in ([p for p in every if p.requires_grad], every))
    if trained < total:
        say(f"Trained: {trained:,} of {total:,} parameters ({trained / total:.1%}).")
    return Towers(towers, first, 1.0 if config.wise_ft is None else config.wise_ft)


def embed_locked(
    towers: TwoTower, pairs: Source, view: Callable[..., Tensor], augmented: bool
) -> tuple[Source, Callable[..., Tensor], Callable[..., Tensor]]:
    """Source, view and tokenizer for training; those of a backbone that stays as it is give its features, made once.

    augmented: whether the view changes from epoch to epoch, so that pictures cannot be embedded once.
    """
    from xmodal.data.features import stack
    from xmodal.encoders.once import images_once, texts_once
    from xmodal.encoders.trainable import is_locked
    from xmodal.report.log import say

    source, tokenize = pairs, towers.tokenizer
    if is_locked(towers, "image"):
        if augmented:
            say("The image tower is locked, but its pictures change: with --augment none they are embedded once.")
        else:
            say(f"Embedding {len(pairs):,} images once with the locked image tower.")
            source, view = images_once(towers, pairs), stack
    if is_locked(towers, "text"):
        say("Embedding the texts once with the locked text tower.")
        tokenize = texts_once(towers, pairs)
    return source, view, tokenize
