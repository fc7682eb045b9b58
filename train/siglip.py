"""SigLIP: an image and a text encoder trained to say of every image and text of a batch whether they are a pair.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343). No softmax: each of the B² pairs is
a question by itself, answered by the sigmoid of a scaled cosine plus a bias.

    xmodal train siglip                                          glyphs, ten minutes on two cores
    xmodal train siglip --data captions.csv                      your own pairs, from scratch
    xmodal train siglip --data captions.csv --model open_clip:ViT-B-16-SigLIP/webli --lora 16
    torchrun --nproc_per_node 8 -m xmodal.train.siglip --data captions.csv --preset paper --batch-size 4096

Expect about what CLIP gives at large batches, and more than it at small ones (section 4.2), in long runs; after 300
steps on glyphs it is still behind. The model's outputs are probabilities of being a pair, σ(scale · cosine + bias). The
loss begins near 10 and falls fast to where B negatives for each positive have been learned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xmodal.cli import guard
from xmodal.config import parse
from xmodal.image_text import PRETRAINED, ImageText, open_data, open_model, train_and_judge

if TYPE_CHECKING:
    from xmodal.encoders.two_tower import TwoTower
    from xmodal.finetune import Towers
    from xmodal.method import Method

# Algorithm 1: so that at first all is taken for no pair, which all but 1 in B are. big_vision's LiT on COCO has −2.71.
FIRST_LOG_SCALE, FIRST_BIAS = math.log(10), -10.0


@dataclass(frozen=True, kw_only=True)
class Config(ImageText):
    # Zhai et al. 2023, section 4: from scratch, with Adafactor there, of which β2 0.95 and the decoupled decay stand
    # here; 32k images suffice.
    model: str = "open_clip:ViT-B-16-SigLIP"
    batch_size: int = 32768
    epochs: float = 32
    lr: float = 1e-3
    wd: float = 1e-4
    warmup: int = 20000
    beta2: float = 0.95


PRESETS: dict[str, dict[str, Any]] = {
    # That of clip, not tuned for this loss.
    "quick": {"model": "small", "batch_size": 512, "epochs": 22, "lr": 2e-3, "wd": 0.3, "warmup": 100},
    **PRETRAINED,
}


def siglip(config: Config, opened: Towers) -> Method:
    """The method: both towers, a learnable scale and bias, a sigmoid for every pair of the global batch."""
    import torch
    from torch import Tensor, nn

    from xmodal.method import Progress
    from xmodal.objectives import siglip_loss
    from xmodal.pair_method import PairMethod

    towers = opened.module
    first = torch.tensor(FIRST_LOG_SCALE)
    if towers.bias is None:  # towers that were never trained with this loss: their scale would mean another thing
        towers.bias = torch.tensor(FIRST_BIAS)
        if opened.first is not None:
            opened.first |= {"log_scale": first, "bias": towers.bias.clone()}
    else:
        first = towers.log_scale

    class SigLip(PairMethod):
        def __init__(self, bias: Tensor) -> None:
            super().__init__(config, opened, first)
            self.bias = nn.Parameter(bias.clone())

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            # No limit to the scale: the paper has none; open_clip holds it below 100 as CLIP's.
            scale = self.log_scale.exp()
            image, text, image_id, text_id = self.pairs(representations, targets)
            loss = siglip_loss(image, text, scale, self.bias, image_id=image_id, text_id=text_id)
            return loss, {"scale": scale.detach(), "bias": self.bias.detach()}

        def export(self) -> TwoTower:
            trained: Any = self.towers if self.average is None else self.average.module
            trained.bias.copy_(self.bias.detach())
            return super().export()

    return SigLip(towers.bias)


def run(config: Config) -> dict[str, Any]:
    """Train and evaluate; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs

    this = runs.begin("siglip", config)
    pairs, tests = open_data(config)
    towers = open_model(config, this, pairs)
    method = siglip(config, towers)
    return train_and_judge(config, this, method, towers, pairs, tests)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train siglip", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
