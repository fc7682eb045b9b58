"""CLIP: an image and a text encoder trained to find each other's pair among all pairs of a batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020).

    xmodal train clip                                            glyphs, ten minutes on two cores
    xmodal train clip --data captions.csv                        your own pairs, from scratch
    xmodal train clip --data captions.csv --model open_clip:ViT-B-32/openai --lora 16
    xmodal train clip --data captions.csv --image-tower timm:vit_small_patch16_224 --lock-image \\
                      --text-tower st:all-MiniLM-L6-v2 --lock-text --head mlp
    xmodal train clip --data captions.csv --image-loss simclr    SLIP: views of a picture find each other, too
    xmodal embed --model open_clip:ViT-L-14/openai --data captions.csv --kind pairs --output teacher
    xmodal train clip --data captions.csv --distill teacher      a smaller model, taught by a larger one
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
from xmodal.errors import InputError
from xmodal.image_text import PRETRAINED, ImageText, open_data, open_model, train_and_judge
from xmodal.interop.open_clip_flags import expand

if TYPE_CHECKING:
    from xmodal.data.views import Views
    from xmodal.encoders.preparation import Preparation
    from xmodal.finetune import Towers
    from xmodal.method import Method


@dataclass(frozen=True, kw_only=True)
class Config(ImageText):
    # Radford et al. 2021, tables 18 and 20 (ViT-B/32); the batch is the global one, on one process.
    model: str = "open_clip:ViT-B-32"
    batch_size: int = 32768
    epochs: float = 32
    lr: float = 5e-4
    wd: float = 0.2
    warmup: int = 2000
    beta2: float = 0.98
    positives: Literal["uniform", "mask"] = "uniform"
    """What equal images or captions of a batch are: uniform, positives as well; mask, left out of the negatives."""
    image_loss: Literal["none", "simclr"] = "none"
    """simclr: two more views of each picture, which find each other among those of all pictures (Mu et al. 2021, SLIP);
    a step takes some three times as long."""
    distill: Path | None = None
    """A teacher's embeddings of --data, which `xmodal embed --kind pairs` made: the softmax over each batch is drawn to
    the teacher's (Wu et al. 2023, TinyCLIP; Yang et al. 2024, CLIP-KD)."""
    distill_weight: float = 1.0
    """With --distill: how much the distance from the teacher counts beside the pairs' own loss."""
    from_open_clip: str | None = None
    """A command line of open_clip_train, in quotes: its flags become ours, and what has no place here is said."""

    def check(self) -> None:
        super().check()
        if self.image_loss != "none" and self.lock_image and not self.unlock_image:
            raise InputError(
                f"--image-loss {self.image_loss} trains the image tower, which --lock-image leaves as it is."
            )
        require(self, "distill_weight", lambda v: 0 < v < math.inf, "a number above 0")
        if self.distill is None and self._was_set("distill_weight"):
            raise InputError(f"--distill-weight {self.distill_weight} means nothing without --distill.")


PRESETS: dict[str, dict[str, Any]] = {
    # Measured on glyphs; see the README.
    "quick": {"model": "small", "batch_size": 512, "epochs": 22, "lr": 2e-3, "wd": 0.3, "warmup": 100},
    **PRETRAINED,
}


def clip(config: Config, opened: Towers, teacher_scale: float | None = None) -> Method:
    """The method: both towers, one learnable temperature, symmetric InfoNCE over the global batch.

    teacher_scale: of the logits of a teacher whose rows are in the batches, beside which the towers' own are put.
    """
    import torch
    from torch import Tensor
    from torch.nn.functional import normalize

    from xmodal.encoders.heads import batch_norm_mlp
    from xmodal.method import Progress
    from xmodal.objectives import clip_loss, distill_loss, info_nce_floor, nt_xent_loss
    from xmodal.pair_method import PairMethod

    class Clip(PairMethod):
        def __init__(self) -> None:
            super().__init__(config, opened, opened.module.log_scale)  # ln(1 / 0.07) unless pretrained

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            scale = self.log_scale.exp()
            image, text, image_id, text_id = self.pairs(representations, targets)
            loss = clip_loss(image, text, scale, image_id=image_id, text_id=text_id, positives=config.positives)
            metrics: dict[str, float | Tensor] = {"scale": scale.detach()}
            if config.positives == "uniform" and teacher_scale is None:  # a teacher's share has a floor of its own
                metrics["floor"] = info_nce_floor(image_id, text_id)
            if teacher_scale is not None:
                taught = self.one_each(targets["teacher_image"], targets["teacher_text"], targets)
                distance = distill_loss(image, text, scale, *taught, teacher_scale)
                loss, metrics["distill"] = loss + config.distill_weight * distance, distance.detach()
            return loss, metrics

        @torch.no_grad()
        def after_step(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> None:
            self.log_scale.clamp_(0, math.log(100))  # section 2.5: logits are never scaled by more than 100
            super().after_step(representations, targets, progress)

    class Slip(Clip):
        """Mu et al. 2021 (arXiv:2112.12750): SimCLR on the image tower's features, with the same weight as CLIP.

        A tower whose projection can't be told from it, as open_clip's, is taken with it. Head and temperature are those
        of facebookresearch/SLIP, models.py and main.py, which has each view through the head by itself.
        """

        def __init__(self) -> None:
            super().__init__()
            seen = self.towers.preparation
            with torch.no_grad():
                picture = torch.zeros(1, 3, seen.height, seen.width, dtype=torch.uint8)
                d = self.towers.eval().features(image=picture).shape[1]
            self.head = batch_norm_mlp(d, 4096, 4096, 256, bias=True)

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            loss, metrics = super().objective(representations, targets, progress)
            views = representations["views"]  # (b, 2, d)
            first, second = (normalize(self.head(view), dim=-1) for view in views.unbind(1))
            image_loss = nt_xent_loss(first, second, temperature=0.1)
            return loss + image_loss, {**metrics, "image_loss": image_loss.detach()}

    return Clip() if config.image_loss == "none" else Slip()


def slip_views(config: Config, preparation: Preparation, photographs: bool) -> Views:
    """The two views that find each other: facebookresearch/SLIP, datasets.py; of drawings and signs, where a flip
    changes the meaning, those that training makes of them anyway."""
    from xmodal.data.views import SMALL, Distort, Views, views

    if not photographs:
        return views("glyphs" if config.data == "glyphs" else "drawing", preparation)
    small = min(preparation.height, preparation.width) <= SMALL
    one = Distort(preparation, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0 if small else 0.5)
    return Views({"views": [one, one]}, exact=config.decode == "exact")


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs
    from xmodal.embedding.teacher import open_teacher

    this = runs.begin("clip", config)
    pairs, tests = open_data(config)
    teacher = open_teacher(config.distill, pairs) if config.distill else None
    towers = open_model(config, this, pairs)
    method = clip(config, towers, teacher.scale if teacher else None)
    views = None
    if config.image_loss == "simclr":
        views = slip_views(config, towers.module.preparation, pairs.photographs)
    return train_and_judge(config, this, method, towers, pairs, tests, views, teacher)


def main(argv: Sequence[str] | None = None) -> int:
    given = expand(sys.argv[1:] if argv is None else argv)
    run(parse(Config, given, prog="xmodal train clip", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
