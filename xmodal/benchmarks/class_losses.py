"""The losses that learn from classes, forward and backward, beside pytorch-metric-learning's for the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal.benchmarks.peers import named
from xmodal.benchmarks.timing import Contest
from xmodal.errors import InputError
from xmodal.objectives import sup_con_loss, triplet_loss

TEMPERATURE, MARGIN = 0.1, 0.2
MOST_ROWS = 512  # for a peer whose memory grows with the third power of the batch

Loss = Callable[[Tensor], Tensor]


def contest(what: str, mining: str, rows: int, of_class: int, width: int, dtype: torch.dtype) -> Contest:
    """what: sup_con or triplet. rows: pictures of a batch, so many of each class.

    Rows lie about a centre of their class, so that some triplets are easy and some are not. Raises InputError without
    pytorch-metric-learning, and for classes of a single picture.
    """
    if of_class < 2 or rows < 2 * of_class:
        raise InputError(f"{rows} pictures, {of_class} of each class: two classes of two pictures are the least.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // of_class
    centres = torch.randn(int(labels[-1]) + 1, width, generator=generator)
    features = F.normalize(centres[labels] + 2 * torch.randn(rows, width, generator=generator), dim=1)
    features, labels = features.to(device, dtype), labels.to(device)
    losses = _losses(what, mining, labels)

    def step(loss: Loss, given: Tensor) -> tuple[Tensor, Tensor]:
        leaf = given.detach().requires_grad_()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    exact, _ = step(losses["xmodal"], features.double())
    same = what == "sup_con" or mining != "semi_hard"
    columns = {
        who: {"loss ±": ((step(loss, features)[0].double() - exact).abs() / exact.abs()).item()}
        for who, loss in losses.items()
        if same or who == "xmodal"
    }
    told: dict[str, Any] = {"mining": mining, "margin": MARGIN} if what == "triplet" else {"temperature": TEMPERATURE}
    if not same:
        told["semi_hard"] = "of each anchor and positive xmodal takes the nearest such negative, the peer all of them"
    return Contest(
        f"{what}: the loss of a batch and its gradients",
        {who: lambda loss=loss: step(loss, features) for who, loss in losses.items()},
        {
            "±": "distance from float64, in parts of it",
            "pictures": f"{rows:,}, {of_class} of each class",
            "width": width,
            **told,
            "type": str(dtype).removeprefix("torch."),
        },
        columns,
    )


def _losses(what: str, mining: str, labels: Tensor) -> dict[str, Loss]:
    """Ours, and pytorch-metric-learning's where it has one for a batch of this size."""
    peer = named("pytorch-metric-learning")
    from pytorch_metric_learning import losses, miners

    if what == "sup_con":
        theirs: Any = losses.SupConLoss(temperature=TEMPERATURE)
        return {"xmodal": lambda x: sup_con_loss(x, labels, TEMPERATURE), peer: lambda x: theirs(x, labels)}
    found: dict[str, Loss] = {"xmodal": lambda x: triplet_loss(x, labels, margin=MARGIN, mining=mining)}  # pyright: ignore[reportArgumentType]
    triplets: Any = losses.TripletMarginLoss(margin=MARGIN)
    miner: Any = None
    if mining == "hard":
        miner = miners.BatchHardMiner()
    elif len(labels) > MOST_ROWS:
        return found
    elif mining == "semi_hard":
        miner = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard")
    found[peer] = lambda x: triplets(x, labels, miner and miner(x, labels))
    return found
