"""What a run costs on many devices, by formula, from what one device is seen to do.

Legend: W devices, b pairs on each, B = W·b; slices of m pairs, n = ⌈b/m⌉; rows of d numbers; P trained and F other
parameters, of which a layer and its neighbour, gathered at once, have at most L. All weights, gradients and rows are
float32: 4 bytes. Collectives are rings: of x bytes that all end up with, each device sends (W−1)/W·x to gather them,
as much to reduce and scatter them, twice as much to reduce them everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Job:
    """A run: pairs gone through, the data's times the epochs; the rest is in the legend."""

    pairs: float
    devices: int
    batch: int  # b
    micro_batch: int  # m
    width: int  # d
    trained: int  # P
    other: int  # F
    largest: int  # L
    fsdp: bool = False

    @property
    def slices(self) -> int:
        return -(-self.batch // self.micro_batch)

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.pairs / (self.devices * self.batch)))


@dataclass(frozen=True)
class OneDevice:
    """What was measured on one, or given.

    slice: seconds to encode m pairs and take their gradient; again: seconds to encode m pairs once more, as gradient
    caching does; loss: seconds of the loss and its gradients for b pairs; optimizer: seconds of its step; activations:
    bytes that a slice takes beside weights and gradients.
    """

    slice: float
    again: float
    loss: float
    optimizer: float
    activations: float


def traffic(job: Job) -> dict[str, float]:
    """Bytes that each device sends, and receives, in a step."""
    ring = (job.devices - 1) / job.devices * FLOAT
    rows = ring * job.devices * job.batch * job.width
    found = {"texts gathered": rows, "gradient of texts scattered": rows}
    if not job.fsdp:
        return {**found, "gradients summed": 2 * ring * job.trained}
    # Every slice but the last is encoded twice, and gathers weights in its backward pass, too.
    passes = 3 * job.slices - 1
    return {
        **found,
        "weights gathered": passes * ring * (job.trained + job.other),
        "gradients scattered": job.slices * ring * job.trained,
    }


def memory(job: Job, one: OneDevice) -> dict[str, float]:
    """Bytes on each device."""
    shared = job.devices if job.fsdp else 1
    found = {
        "weights": FLOAT * (job.trained + job.other) / shared,
        "gradients": FLOAT * job.trained / shared,
        "AdamW's two averages": 2 * FLOAT * job.trained / shared,
        "activations of a slice": one.activations,
        "embeddings and their gradients": 4 * FLOAT * job.batch * job.width,  # both towers
        "gathered texts and their gradient": 2 * FLOAT * job.devices * job.batch * job.width,
    }
    if job.fsdp:
        return {**found, "a layer and the next, gathered, and their gradient": 2 * FLOAT * job.largest}
    # The sum over processes is made on one flat copy.
    return {**found, "gradients while they are summed": FLOAT * job.trained if job.devices > 1 else 0.0}


def seconds(job: Job, one: OneDevice, bandwidth: float | None = None) -> dict[str, float]:
    """Seconds of a step. bandwidth: bytes a second that a device sends; without it traffic takes none.

    Nothing is overlapped: traffic comes on top of the arithmetic.
    """
    shared = job.devices if job.fsdp else 1
    found = {
        "towers": job.slices * one.slice + (job.slices - 1) * one.again,
        "loss": job.devices * one.loss,  # b rows against B columns, where one device alone has b
        "optimizer": one.optimizer / shared,
    }
    if bandwidth:
        found["traffic, nothing overlapped"] = sum(traffic(job).values()) / bandwidth
    return found


def measure(
    model: str,
    batch: int,
    micro_batch: int,
    words: int,
    *,
    grad_checkpointing: bool,
    bf16: bool,
    towers_too: bool = True,
) -> tuple[OneDevice, int, int, int, int]:
    """OneDevice and the sizes of a model: (one, width, trained, other, largest), measured on random pictures.

    The loss is measured on at most 4,096 pairs, and taken to grow with the square. towers_too: without it what slices
    take is left at 0. Raises InputError.
    """
    from contextlib import nullcontext

    import torch

    from xmodal.benchmarks.grad_cache import _Clip
    from xmodal.benchmarks.timing import in_turn, peak_bytes
    from xmodal.encoders import build
    from xmodal.encoders.depth import blocks
    from xmodal.encoders.tokenizer import PiecesTokenizer
    from xmodal.errors import InputError
    from xmodal.grad_cache import gradients
    from xmodal.method import Progress
    from xmodal.objectives import clip_loss

    caption = " ".join(("a photo of two dogs that run along a beach with a ball beside them " * 9).split()[:words])
    torch.manual_seed(0)
    towers = build(model, train_tokenizer=lambda: PiecesTokenizer.train([caption], 64), side=32)
    towers.set_grad_checkpointing(grad_checkpointing)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = _Clip(towers).to(device).train()
    seen = towers.preparation

    def pairs(n: int) -> dict[str, Any]:
        pixels = torch.randint(0, 256, (n, 3, seen.height, seen.width), dtype=torch.uint8)
        return {"image": pixels, "text": towers.tokenizer([caption] * n)}

    def step(given: dict[str, Any]) -> None:
        method.zero_grad(set_to_none=True)
        autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
        gradients(method, given, Progress(0, 1, 1, len(given["text"])), device, 0, micro_batch, autocast)

    one_slice, two_slices = (pairs(n * micro_batch if towers_too else 1) for n in (1, 2))
    trained = [p for p in method.parameters() if p.requires_grad]
    step(one_slice)  # a first time that doesn't count
    with torch.no_grad():
        width = towers(text=one_slice["text"][:1].to(device))["text"].shape[1]
    peak = peak_bytes(lambda: step(one_slice)) if towers_too else 0
    if peak is None:
        raise InputError("This system doesn't tell a process's highest memory.")
    few = min(batch, 4096)
    rows = [torch.nn.functional.normalize(torch.randn(few, width, device=device), dim=1) for _ in range(2)]
    scale = torch.tensor(14.3, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    optimizer.step()

    def loss() -> None:
        leaves = [x.detach().requires_grad_() for x in rows]
        torch.autograd.grad(clip_loss(leaves[0], leaves[1], scale), [*leaves, scale])

    of_towers = {"slice": lambda: step(one_slice), "two": lambda: step(two_slices)} if towers_too else {}
    functions: dict[str, Callable[[], Any]] = {**of_towers, "loss": loss, "optimizer": optimizer.step}
    times = {"slice": 0.0, "two": 0.0, **{name: min(found) for name, found in in_turn(functions, 3).items()}}
    every = list(method.parameters())
    total, n_trained = (sum(p.numel() for p in some) for some in (every, trained))
    largest = 2 * max(sum(p.numel() for p in layer.parameters()) for layer in blocks(towers))
    around = total - sum(p.numel() for layer in blocks(towers) for p in layer.parameters())
    one = OneDevice(
        slice=times["slice"],
        again=max(0.0, times["two"] - 2 * times["slice"]),
        loss=times["loss"] * (batch / few) ** 2,
        optimizer=times["optimizer"],
        activations=max(0.0, peak - FLOAT * n_trained),
    )
    return one, width, n_trained, total - n_trained, max(largest, around)
