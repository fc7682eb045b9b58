"""The losses, forward and backward, beside the classes that people use for the same; and how exact each is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import objectives
from xmodal.benchmarks.peers import named
from xmodal.benchmarks.timing import Contest

Loss = Callable[..., Tensor]
NORMALISING = ("lightly", "pytorch-metric-learning", "sentence-transformers")  # make rows unit themselves
MOST_PAIRS = 256  # for a peer whose memory grows with the third power of the batch


def contest(
    what: str, pairs: int, width: int, scale: float, noise: float | None, keep_bytes: int, dtype: torch.dtype
) -> Contest:
    """what: clip, siglip, nt_xent or cached. Texts are random, or with `noise` images plus so much of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, peers, bias = _losses(what, keep_bytes, pairs)
    inputs = [rows.to(device, dtype) for rows in _rows(pairs, width, noise)]
    inputs += [torch.tensor(value, device=device) for value in (scale, -10.0)[: 2 if bias else 1]]

    def step(loss: Loss, given: list[Tensor]) -> list[Tensor | None]:
        leaves = [t.detach().requires_grad_() for t in given]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)]

    losses = {"xmodal": ours, **peers}
    exact = step(ours, [t.double() for t in inputs]) if what != "clip" else _exact(*inputs[:3])
    names = ("loss", "gradients", "gradients", "scale", "bias")[: len(exact)]
    errors: dict[str, dict[str, float]] = {}
    for who, loss in losses.items():
        errors[who] = {}
        for name, got, want in zip(names, step(loss, inputs), exact, strict=True):
            if got is None or want is None:
                continue  # its temperature is a number
            if who.startswith(NORMALISING) and name != "loss":
                continue  # its gradients are those of another function
            off = ((got.double() - want).norm() / want.norm().clamp_min(1e-300)).item()
            errors[who][f"{name} ±"] = max(off, errors[who].get(f"{name} ±", 0.0))
    return Contest(
        f"{what}: the loss of a batch and its gradients",
        {who: lambda loss=loss: step(loss, inputs) for who, loss in losses.items()},
        {
            "±": "distance from float64, in parts of it",
            "pairs": pairs,
            "width": width,
            "scale": scale,
            "texts": "random" if noise is None else f"images plus {noise:g} times noise",
            "kept": f"{keep_bytes / 2**20:.0f} MiB of exponentials",
            "type": str(dtype).removeprefix("torch."),
        },
        errors,
    )


def _rows(pairs: int, width: int, noise: float | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, other = (F.normalize(torch.randn(pairs, width, generator=generator), dim=1) for _ in range(2))
    return [image, other if noise is None else F.normalize(image + noise * other, dim=1)]


def _exact(image: Tensor, text: Tensor, scale: Tensor) -> list[Tensor]:
    """InfoNCE and its gradients in float64, as log(1 + Σ exp(negative − positive)): in blocks, never a difference."""
    x, y, s = image.double(), text.double(), scale.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    gradients = [torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(total)]
    for one, other, mine, theirs in ((x, y, 0, 1), (y, x, 1, 0)):
        for a in range(0, len(x), 512):
            here, there = one[a : a + 512].detach().requires_grad_(), other.detach().requires_grad_()
            own = torch.arange(a, a + len(here), device=image.device)[:, None]
            logits = s * here @ there.T
            apart = (logits - logits.gather(1, own)).scatter(1, own, float("-inf"))
            loss = torch.log1p(apart.exp().sum(1)).sum() / (2 * len(x))
            of_here, of_there, of_scale = torch.autograd.grad(loss, [here, there, s])
            gradients[mine][a : a + 512] += of_here
            gradients[theirs] += of_there
            gradients[2] += of_scale
            total += loss.detach()
    return [total, *gradients]


def _losses(what: str, keep_bytes: int, pairs: int) -> tuple[Loss, dict[str, Loss], bool]:
    """Ours, the peers' by name, and whether they take a bias."""
    from open_clip.loss import ClipLoss, SigLipLoss

    open_clip = f"open_clip {version('open_clip_torch')}"

    def ours(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return objectives.clip_loss(image, text, scale, keep_bytes=keep_bytes)

    if what == "clip":
        return ours, {open_clip: ClipLoss(), "one matrix, autograd": _one_matrix}, False
    if what == "siglip":
        return objectives.siglip_loss, {open_clip: SigLipLoss()}, True
    if what == "cached":
        return ours, {named("sentence-transformers"): _cached_symmetric()}, False
    peers: dict[str, Loss] = {
        "whole matrix, autograd": _whole_matrix,
        named("lightly"): _lightly_nt_xent,
    }
    if pairs <= MOST_PAIRS:
        peers[named("pytorch-metric-learning")] = _metric_learning_nt_xent
    return lambda first, second, scale: objectives.nt_xent_loss(first, second, 1 / scale), peers, False


def _one_matrix(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _whole_matrix(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    rows = torch.cat([first, second])
    self = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    labels = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy((scale * rows @ rows.T).masked_fill(self, float("-inf")), labels)


def _lightly_nt_xent(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=1 / scale.item())(first, second)


def _metric_learning_nt_xent(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss

    labels = torch.arange(len(first), device=first.device).repeat(2)
    return NTXentLoss(temperature=1 / scale.item())(torch.cat([first, second]), labels)


def _cached_symmetric() -> Loss:
    """The part of sentence-transformers' cached symmetric loss that follows the encoding, mini-batches of 32."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model: Any = torch.nn.Sequential(torch.nn.Identity())  # the part doesn't encode

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        cached = CachedMultipleNegativesRankingLoss(
            model, scale=scale.item(), directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )
        parts = [list(image.split(cached.mini_batch_size)), list(text.split(cached.mini_batch_size))]
        return _backward_inside(cached, parts, image, text)

    return loss


def _backward_inside(cached: Any, parts: list[list[Tensor]], image: Tensor, text: Tensor) -> Tensor:
    """It takes gradients block by block, so that no graph of the whole is kept: hand them on as they are."""
    leaves = [[p.detach().requires_grad_() for p in side] for side in parts]
    value = cached.calculate_loss(leaves, with_backward=True)
    gradients = [torch.cat([p.grad for p in side if p.grad is not None]) for side in leaves]
    return _Ready.apply(image, text, value, *gradients)  # pyright: ignore[reportReturnType]


class _Ready(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, value: Tensor, to_image: Tensor, to_text: Tensor) -> Tensor:
        ctx.save_for_backward(to_image, to_text)
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_image, to_text = ctx.saved_tensors
        return to_image * gradients[0], to_text * gradients[0], None, None, None
