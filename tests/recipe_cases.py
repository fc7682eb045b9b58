"""Image recipes on a few small pictures: started on two processes by test_recipes.py, compared with one.

A new recipe adds one entry to CASES. Each process takes its part of two global batches, of uneven size, and, alone, the
whole of them; it writes how far loss, gradients and state are off as JSON.
Usage: torchrun --nproc_per_node 2 recipe_cases.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal import distributed
from xmodal.encoders.image import ImageEncoder
from xmodal.encoders.patches import encoder_of_patches
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.sequence import SequenceEncoder
from xmodal.encoders.small_resnet import SmallResNet
from xmodal.encoders.two_tower import TwoTower
from xmodal.finetune import Towers
from xmodal.grad_cache import gradients
from xmodal.method import Method, Progress
from xmodal.train import barlow_twins, byol, clip, cpc, metric, moco, siglip, simclr, supcon, swav

SIDE, B = 16, 12
PARTS = 5, 7  # rows of the global batch on each process
STEPS = 2  # so that what one step leaves behind, a queue or a teacher, has a part in the next


@dataclass(frozen=True)
class Case:
    """method: a fresh one, always with the same weights. batch: a global batch of B rows, by number."""

    method: Callable[[], Method]
    batch: Callable[[int], dict[str, Tensor]]


def encoder() -> ImageEncoder:
    """Two stages with BatchNorm. Call it first: it seeds the weights of what comes after, heads too."""
    torch.manual_seed(3)
    return ImageEncoder(SmallResNet((8, 16)), 16, preparation=Preparation(SIDE, SIDE), description={})


def views(number: int, v: int = 2, side: int = SIDE) -> Tensor:
    """(B, v, 3, side, side) uint8: views that have something in common."""
    g = torch.Generator().manual_seed(number)
    shared = torch.randint(0, 128, (B, 1, 3, side, side), generator=g)
    return (shared + torch.randint(0, 128, (B, v, 3, side, side), generator=g)).to(torch.uint8)


def two_views(number: int) -> dict[str, Tensor]:
    return {"views": views(number), "row": torch.arange(B)}


def many_crops(number: int) -> dict[str, Tensor]:
    return {**two_views(number), "crops": views(100 + number, 3, 8)}


def classes(number: int) -> dict[str, Tensor]:
    """Two pictures of each of six classes; a pair lies on both processes."""
    return {**two_views(number), "label": torch.arange(B) // 2}


def few_classes(number: int) -> dict[str, Tensor]:
    """Four pictures of each of three classes."""
    return {**two_views(number), "label": torch.arange(B) // 4}


def patches(number: int) -> dict[str, Tensor]:
    return {"patches": views(number, 49, 4)}


def sequence_encoder(of_bytes: bool = True) -> SequenceEncoder:
    torch.manual_seed(3)
    return SequenceEncoder(of_bytes=of_bytes, strides=(2, 2), width=8, d=6)


def sequences(number: int) -> dict[str, Tensor]:
    return {"sequence": torch.randint(0, 256, (B, 40), generator=torch.Generator().manual_seed(number)).byte()}


def of_metric(**changed: Any) -> Case:
    return Case(lambda: metric.metric(metric.Config(**changed), encoder()), classes)


class Words(nn.Module):
    """The mean of its words' rows, (b, l) long -> (b, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(9, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows(tokens).mean(1)


def towers() -> TwoTower:
    """The tower of `encoder` beside one of texts."""
    image = encoder().image
    nothing: Any = None
    return TwoTower(image, Words(), preparation=Preparation(SIDE, SIDE), tokenizer=nothing, description={})


def pairs(number: int) -> dict[str, Tensor]:
    """Pictures with texts of four words; two are of one picture, and two others have one text."""
    g = torch.Generator().manual_seed(number)
    image_id, text_id = torch.arange(B), torch.arange(B)
    image_id[7], text_id[9] = 2, 4
    text = torch.randint(0, 9, (B, 4), generator=g)
    return {"image": views(number)[:, 0], "text": text, "image_id": image_id, "text_id": text_id}


def pairs_and_views(number: int) -> dict[str, Tensor]:
    return {**pairs(number), "views": views(100 + number)}


def taught_pairs(number: int) -> dict[str, Tensor]:
    """A teacher's rows, of another width, beside them."""
    g = torch.Generator().manual_seed(200 + number)
    rows = F.normalize(torch.randn(2, B, 5, generator=g), dim=-1)
    return {**pairs(number), "teacher_image": rows[0], "teacher_text": rows[1]}


CASES = {
    "simclr": Case(lambda: simclr.simclr(simclr.Config(head_dim=8), encoder()), two_views),
    # The second batch goes round the end of the queue.
    "moco": Case(lambda: moco.moco(moco.Config(head_dim=8, momentum=0.5, queue=20), encoder()), two_views),
    "byol": Case(lambda: byol.byol(byol.Config(hidden_dim=16, head_dim=8, momentum=0.5), encoder()), two_views),
    # In the first step prototypes are fixed and the queues fill; in the second they move, and the queues help.
    "swav": Case(
        lambda: swav.swav(
            swav.Config(hidden_dim=16, head_dim=8, prototypes=10, frozen_steps=1, queue=B, queue_from_epoch=0),
            encoder(),
        ),
        many_crops,
    ),
    "barlow_twins": Case(lambda: barlow_twins.barlow_twins(barlow_twins.Config(head_dim=12), encoder()), two_views),
    "cpc, patches": Case(lambda: cpc.cpc(cpc.Config(ahead=2), encoder_of_patches(encoder())), patches),
    "cpc, sequences": Case(lambda: cpc.cpc(cpc.Config(data="prose", ahead=3, width=8), sequence_encoder()), sequences),
    "supcon": Case(lambda: supcon.supcon(supcon.Config(head_dim=8), encoder()), classes),
    "triplet": of_metric(mining="all"),
    "n_pair": of_metric(objective="n_pair"),
    "n_pair, two tuples": Case(lambda: metric.metric(metric.Config(objective="n_pair"), encoder(), 4), few_classes),
    "margin": of_metric(objective="margin", mining="hard"),
    "logistic": of_metric(objective="logistic"),
    "siglip": Case(lambda: siglip.siglip(siglip.Config(), Towers(towers())), pairs),
    "slip": Case(lambda: clip.clip(clip.Config(image_loss="simclr"), Towers(towers())), pairs_and_views),
    "distill": Case(lambda: clip.clip(clip.Config(distill=Path("teacher")), Towers(towers()), 20.0), taught_pairs),
}


def trained(case: Case, part: slice) -> Iterator[dict[str, Tensor]]:
    """Steps of plain descent in float64 on a part of each batch: loss, gradients and the state after it, by name."""
    method = case.method().double().train()
    for step in range(STEPS):
        batch = {name: value[part] for name, value in case.batch(step).items()}
        progress = Progress(step, STEPS, 1, B)
        device = torch.device("cpu")
        method.zero_grad(set_to_none=True)
        loss, _, representations, targets = gradients(method, batch, progress, device, 0, None, nullcontext)
        distributed.sum_gradients(method.parameters())
        found = {f"gradient of {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
        method.after_step(representations, targets, progress)
        yield {"loss": loss, **found, **{f"state {name}": t.clone() for name, t in method.state_dict().items()}}


def off(case: Case) -> dict[str, float]:
    """How far this process is from one that has the whole batch: the most of each kind, in parts of the largest."""
    first = sum(PARTS[: distributed.rank()])
    together = list(trained(case, slice(first, first + PARTS[distributed.rank()])))
    with distributed.alone():
        alone = list(trained(case, slice(None)))
    worst: dict[str, float] = {}
    for here, there in zip(together, alone, strict=True):
        assert here.keys() == there.keys()
        for name in here:
            a, b = here[name].double(), there[name].double()
            kind = name.split()[0]
            difference = ((a - b).abs().max() / b.abs().max().clamp_min(1)).item() if a.numel() else 0.0
            worst[kind] = max(worst.get(kind, 0.0), difference)
    return worst


def main() -> None:
    distributed.start("fp32")
    found: Any = {name: off(case) for name, case in CASES.items()}
    Path(sys.argv[1], f"rank{distributed.rank()}.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
