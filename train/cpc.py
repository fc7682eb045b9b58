"""CPC: an encoder whose features of what was seen so far tell what comes next from what comes next elsewhere.

van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748). A network
makes a row z of every piece, another one a context c of the pieces so far; for each distance k a matrix W_k of its own
predicts z_{t+k} from c_t among the z of all other pieces in the batch.

Of pictures (section 3.2) pieces are overlapping patches, and the rows of patches below are predicted from those above:
    xmodal train cpc                                             glyphs, some minutes on two cores
    xmodal train cpc --data cifar10/train.parquet --preset quick
    torchrun --nproc_per_node 8 -m xmodal.train.cpc --data imagenet --preset paper --batch-size 64

Of sequences (section 3.1) they are stretches of sound, text or numbers, and the context is a recurrent network's:
    xmodal train cpc --data prose                                bytes of English prose, a minute or two
    xmodal train cpc --data speech.wav                           or FILE.npy, FILE.txt

Expect pictures' features whose nearest neighbours are of the same class more often than before, and of sequences a rate
of right predictions above chance, the more so the nearer. It needs many steps: the paper's speech took 300,000.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.data.sequence_names import is_sequences
from xmodal.errors import InputError
from xmodal.pretrain import Judge, Optimizer, Pretraining, open_data, open_encoder, train_and_judge

if TYPE_CHECKING:
    from torch import Tensor

    from xmodal.data.sequences import Windows
    from xmodal.encoders.image import ImageEncoder
    from xmodal.encoders.sequence import SequenceEncoder
    from xmodal.method import Method
    from xmodal.run import Evaluation

CANDIDATES = 128  # futures among which the right one is looked for, when sequences are judged


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    # Section 3.2: Adam at 2e-4 on 32 GPUs with 16 pictures each; here the rate is that of a batch of 256. The paper's
    # network is a ResNet v2 101 up to its third stage. It doesn't say for how many epochs.
    data: str = "glyphs"
    """Pictures: glyphs, a folder, a table, parquet, tar shards or hf-dataset:NAME. Sequences: prose, FILE.txt, FILE.wav
    or FILE.npy."""
    preset: Literal["auto", "paper", "quick", "speech", "text"] = "auto"
    """paper: pictures, the defaults listed here. quick: pictures on two CPU cores. speech: the paper's for sound, and
    for numbers. text: bytes on two CPU cores. auto: by the data and the machine."""
    model: str = "timm:resnet101/random"
    batch_size: int = 512
    epochs: float = 100
    optimizer: Optimizer = "adamw"
    lr: float = 1e-4
    wd: float = 0.0
    ahead: int = 5
    """How many rows of patches, from the second below on, or steps of a sequence are predicted."""
    window: int = 20480
    """Values of a sequence that are seen at once."""
    strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    """Of the convolutions over a sequence; kernels are twice as long."""
    width: int = 512
    """Their channels."""
    context_dim: int = 256
    """Units of the recurrent network over a sequence."""

    def check(self) -> None:
        super().check()
        for name in ("window", "width", "context_dim"):
            require(self, name, lambda v: v >= 1, "at least 1")
        require(self, "strides", lambda v: v and all(s >= 1 for s in v), "numbers of at least 1")
        require(self, "ahead", lambda v: v >= 1, "at least 1")
        if self.augment != "auto":
            raise InputError(f"--augment {self.augment} has no place here: cpc cuts pictures into patches.")
        if not is_sequences(self.data):
            require(self, "ahead", lambda v: v <= 5, "at most 5: of 7 rows of patches the last is 6 below the first")
            return
        steps = self.window
        for stride in self.strides:
            steps = (steps - 2 * stride) // stride + 1
        if steps <= self.ahead:
            raise InputError(
                f"--window {self.window} is {max(0, steps)} steps, of which {self.ahead} can't be predicted: choose a "
                "longer window, smaller --strides or --ahead."
            )

    def preset_for_machine(self) -> str:
        if not is_sequences(self.data):
            return super().preset_for_machine()
        return "text" if self.data == "prose" or self.data.endswith(".txt") else "speech"


PRESETS: dict[str, dict[str, Any]] = {
    # Ours, not tuned. The 16 pictures are those of one of the paper's GPUs: with 64 the loss alone, which grows with
    # their square, takes as long as the networks do.
    "quick": {
        **{"model": "small", "batch_size": 16, "epochs": 2, "ahead": 3},
        **{"optimizer": "adamw", "lr": 1.6e-2, "wd": 0.01, "warmup": 100},
    },
    # Section 3.1: 8 GPUs with 8 windows each, Adam at 2e-4, 300,000 steps, 12 steps ahead.
    "speech": {"batch_size": 64, "steps": 300000, "lr": 8e-4, "ahead": 12},
    # Ours: four bytes a step.
    "text": {
        **{"batch_size": 32, "epochs": 10, "lr": 8e-3, "wd": 0.01, "warmup": 50, "ahead": 4},
        **{"window": 256, "strides": (2, 2), "width": 128, "context_dim": 128},
    },
}


def cpc(config: Config, encoder: ImageEncoder | SequenceEncoder) -> Method:
    """The method: z and contexts of every place, and for each distance a matrix that predicts."""
    import torch
    from torch import nn

    from xmodal import distributed
    from xmodal.data.patches import GRID, side_of_patches
    from xmodal.encoders.patches import mean_over_patches
    from xmodal.encoders.rows_above import RowsAbove
    from xmodal.encoders.sequence import SequenceEncoder
    from xmodal.method import Batch, Method, Progress
    from xmodal.objectives import cpc_loss
    from xmodal.sharding import whole

    class CPC(Method):
        """Axis 1 is what is predicted along: rows of patches (b, 7, 7, d), or steps of a sequence (b, t, width)."""

        def __init__(self) -> None:
            super().__init__()
            self.towers = encoder
            z, c = encoder.d, encoder.d
            if isinstance(encoder, SequenceEncoder):
                z, self.nearest = config.width, 1
            else:
                # From the second row below on, for half of the first one's pixels are the context's own, which tell it;
                # so does loeweX/Greedy_InfoMax (vision/models/InfoNCE_Loss.py, skip_step=1).
                self.context, self.nearest = RowsAbove(c), 2
            self.transforms = nn.Parameter(torch.randn(config.ahead, z, c) / c)  # W_k

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            if "sequence" in batch:
                return self.towers(batch["sequence"])  # z (b, t, width), context (b, t, c)
            z = self.towers(batch["patches"]).unflatten(1, (GRID, GRID))  # (b, 7, 7, d): each patch by itself
            return {"z": z, "context": self.context(z)}

        def objective(
            self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
        ) -> tuple[Tensor, dict[str, float | Tensor]]:
            z, context = representations["z"], representations["context"]
            losses, bounds = [], []
            for k, transform in enumerate(self.transforms, self.nearest):
                future, past = (rows.flatten(0, -2) for rows in (z[:, k:], context[:, :-k]))  # (n, z), (n, c)
                losses.append(cpc_loss(past, future[:, None], transform[None]))
                bounds.append(math.log(max(1, distributed.count(len(past)))) - losses[-1].detach())
            # Section 2.3: so many nats of what is to come are told at least.
            return torch.stack(losses).mean(), {"information": torch.stack(bounds).mean()}

        def export(self) -> ImageEncoder | SequenceEncoder:
            now = whole(encoder)
            if isinstance(now, SequenceEncoder):
                return now
            return mean_over_patches(now, side_of_patches(now.preparation))

    return CPC()


class Predictions:
    """Judges an encoder of sequences, and the W_k with it, by windows that it wasn't trained on."""

    def __init__(self, method: Any, held: Windows | None) -> None:
        self.method, self.held = method, held

    def __call__(self, encoder: SequenceEncoder) -> Evaluation:
        """How often the future of a window's middle is found among those of others. Nothing where nothing is held."""
        import numpy as np
        import torch

        from xmodal.evaluators import bootstrap
        from xmodal.evaluators.prediction import prediction_hits
        from xmodal.run import Evaluation

        if self.held is None:
            return Evaluation({}, {})
        transforms: Tensor = self.method.transforms.detach()
        ahead, n = len(transforms), len(self.held)
        group, found = min(CANDIDATES, n), []
        for a in range(0, n - group + 1, group):
            with torch.inference_mode():
                seen = encoder(self.held.read(np.arange(a, a + group)).to(encoder.device))
            t = (seen["z"].shape[1] - ahead) // 2
            found.append(prediction_hits(seen["context"][:, t], seen["z"][:, t + 1 : t + 1 + ahead], transforms))
        hits = np.concatenate(found).astype(float)
        protocol = {
            "task": f"prediction: the right step of {group}, those of other windows at the same place",
            "data": self.held.name,
            "windows": len(hits),
            "chance": 1 / group,
            "a step": f"made from {encoder.least} values, {encoder.stride} on from one to the next; the first "
            "distances share values with the context, and are easy",
        }
        scores = {f"prediction/{k}_ahead": bootstrap.mean_score(hits[:, k - 1]) for k in range(1, ahead + 1)}
        return Evaluation(protocol, scores)


def run(config: Config) -> dict[str, Any]:
    """Train and judge; returns the protocol and the scores, which are also in the run folder."""
    from xmodal import run as runs
    from xmodal.data.patches import PatchViews
    from xmodal.data.sequences import WindowBatches, open_windows
    from xmodal.data.view_batches import ViewBatches
    from xmodal.encoders.patches import encoder_of_patches
    from xmodal.encoders.sequence import SequenceEncoder

    this = runs.begin("cpc", config)
    if is_sequences(config.data):
        windows, unseen = open_windows(config.data, config.window, config.hold_out)
        mean, std = windows.scale()
        shape: dict[str, Any] = {"strides": config.strides, "width": config.width, "d": config.context_dim}
        of_sequences = SequenceEncoder(of_bytes=windows.of_bytes, mean=mean, std=std, **shape)
        method: Any = cpc(config, of_sequences)
        data: Any = WindowBatches(windows, **this.share(windows), seed=config.seed)
        judge: Any = Predictions(method, unseen)
    else:
        train, held = open_data(config)
        encoder = encoder_of_patches(open_encoder(config, train))
        patches = PatchViews(encoder.preparation, exact=config.decode == "exact")
        method = cpc(config, encoder)
        data = ViewBatches(train, **this.share(train), seed=config.seed, views=patches)  # pyright: ignore[reportArgumentType]
        judge = Judge(config, train, held)
    return train_and_judge(config, this, method, data, judge)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal train cpc", presets=PRESETS, choose_preset=Config.preset_for_machine))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
