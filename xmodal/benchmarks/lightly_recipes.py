"""SimCLR, MoCo, BYOL and Barlow Twins as lightly's examples train them: its transforms, heads, losses and updates.

Around them a plain loop of torch, as in those examples. Where a recipe of ours has a setting that theirs has, too, it
is set alike: widths, temperature, queue, momentum, the strength of the views.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, get_weight_decay_parameters, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xmodal.encoders.image import ImageEncoder

Views = Sequence[Tensor]  # two of each picture, (b, 3, h, w) each, normalised


class SimCLR(nn.Module):
    """As all of these: two views (b, 3, h, w) -> the loss of this step of so many."""

    def __init__(self, backbone: nn.Module, d: int, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(d, d, config.head_dim)
        self.criterion = NTXentLoss(config.temperature)

    def forward(self, first: Tensor, second: Tensor, step: int, steps: int) -> Tensor:
        return self.criterion(*(self.projection_head(self.backbone(view)) for view in (first, second)))


class MoCo(nn.Module):
    def __init__(self, backbone: nn.Module, d: int, config: Any) -> None:
        super().__init__()
        self.backbone, self.momentum = backbone, config.momentum
        self.projection_head = MoCoProjectionHead(d, d, config.head_dim)
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(config.temperature, memory_bank_size=(config.queue, config.head_dim))

    def forward(self, first: Tensor, second: Tensor, step: int, steps: int) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)
        query = self.projection_head(self.backbone(first))
        with torch.no_grad():
            key = self.projection_head_momentum(self.backbone_momentum(second))
        return self.criterion(query, key)


class BYOL(nn.Module):
    def __init__(self, backbone: nn.Module, d: int, config: Any) -> None:
        super().__init__()
        self.backbone, self.momentum = backbone, config.momentum
        self.projection_head = BYOLProjectionHead(d, config.hidden_dim, config.head_dim)
        self.prediction_head = BYOLPredictionHead(config.head_dim, config.hidden_dim, config.head_dim)
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, first: Tensor, second: Tensor, step: int, steps: int) -> Tensor:
        momentum = cosine_schedule(step, steps, self.momentum, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        predicted = [self.prediction_head(self.projection_head(self.backbone(view))) for view in (first, second)]
        with torch.no_grad():
            aims = [self.projection_head_momentum(self.backbone_momentum(view)) for view in (second, first)]
        return 0.5 * (self.criterion(predicted[0], aims[0]) + self.criterion(predicted[1], aims[1]))


class BarlowTwins(nn.Module):
    def __init__(self, backbone: nn.Module, d: int, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(d, config.head_dim, config.head_dim)
        self.criterion = BarlowTwinsLoss(lambda_param=config.redundancy)

    def forward(self, first: Tensor, second: Tensor, step: int, steps: int) -> Tensor:
        return self.criterion(*(self.projection_head(self.backbone(view)) for view in (first, second)))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
}


def transform(method: str, encoder: ImageEncoder) -> Any:
    """Its views of small pictures: no blur, and for SimCLR half the strength of colours, as its documentation says."""
    seen = encoder.preparation
    told: dict[str, Any] = {
        "input_size": seen.height,
        "gaussian_blur": 0.0,
        "normalize": {"mean": list(seen.mean), "std": list(seen.std)},
    }
    if method == "simclr":
        return SimCLRTransform(cj_strength=0.5, **told)
    if method == "moco":
        return MoCoV2Transform(**told)
    return BYOLTransform(BYOLView1Transform(**told), BYOLView2Transform(**told))


class Pictures(Dataset):
    """Decoded pictures (n, h, w, 3) uint8, held in memory as torchvision's CIFAR10 does -> two views."""

    def __init__(self, pixels: np.ndarray, transform: Any) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.pixels[row]))


def own_views(method: str, encoder: ImageEncoder, pixels: np.ndarray, batch: int, workers: int) -> Iterator[Views]:
    """Batches of its own views, for ever."""
    loader = DataLoader(
        Pictures(pixels, transform(method, encoder)),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def train(
    method: str, config: Any, start: ImageEncoder, views: Iterable[Views], steps: int, lr: Callable[[int], float]
) -> tuple[ImageEncoder, list[float]]:
    """A copy of the encoder, trained as long as there are views, and when each step ended, in seconds.

    steps, lr: how long the whole training is, and the rate of a step. With the config's bf16 the model, its loss too,
    runs under autocast, as by Lightning's "bf16-mixed".
    """
    encoder = copy.deepcopy(start).train()
    model = MODELS[method](encoder.image, encoder.d, config)
    told = {} if method == "moco" else {"weight_decay": 0.0}  # MoCo decays gains and biases, too
    decayed, plain = get_weight_decay_parameters([m for m in model.children() if any(_trained(m))])
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, **told}], lr=lr(0), weight_decay=config.wd, eps=1e-6
    )
    ends: list[float] = []
    for step, (first, second) in enumerate(views):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        with torch.autocast(first.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(first, second, step, steps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return encoder.eval(), ends


def _trained(module: nn.Module) -> Iterator[bool]:
    return (p.requires_grad for p in module.parameters())
