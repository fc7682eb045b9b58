"""How fast, how small and how exact the losses are, beside the libraries that people use for the same.

Forward and backward, float32; the figures mean something on an idle machine only.

    xmodal eval losses
    xmodal eval losses siglip --pairs 4096 --json losses.json
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    what: tyro.conf.Positional[Literal["clip", "siglip", "nt_xent"]] = "clip"
    """clip: symmetric InfoNCE, against open_clip's ClipLoss. siglip: against its SigLipLoss.
    nt_xent: against the whole matrix under autograd."""
    pairs: int = 8192
    """Pairs in the batch."""
    width: int = 512
    """Numbers in an embedding."""
    scale: float = 14.3
    """1 / temperature."""
    keep_mib: int = 0
    """Memory in which clip may keep exponentials for the backward pass."""
    repeats: int = 5
    """How often each is timed, after a first time that isn't."""
    json: Path | None = None
    """Write the figures here as well."""

    def check(self) -> None:
        for name in ("pairs", "width", "repeats"):
            require(self, name, lambda v: v >= 1, "at least 1")
        require(self, "scale", lambda v: v > 0, "more than 0")
        require(self, "keep_mib", lambda v: v >= 0, "0 or more")


def run(config: Config) -> dict[str, Any]:
    """Time both in turn, measure memory and distance from float64, print; returns all of it."""
    import torch

    from xmodal.evaluators.scores import write_json
    from xmodal.report.timing import in_turn, machine, peak_bytes

    ours, theirs, bias = _losses(config)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(config.pairs, config.width, generator=generator) for _ in range(2)]
    inputs = [*(torch.nn.functional.normalize(r, dim=1) for r in rows), torch.tensor(config.scale)]
    inputs += [torch.tensor(-10.0)] if bias else []

    def step(loss: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in inputs]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    functions = {"xmodal": lambda: step(ours), "peer": lambda: step(theirs)}
    first = {name: function() for name, function in functions.items()}
    seconds = in_turn(functions, config.repeats)
    memory = {name: peak_bytes(function) for name, function in functions.items()}
    exact = step(ours, torch.float64)
    names = ("loss", "image", "text", "scale", "bias")[: len(exact)]
    errors = {
        who: {n: _distance(a, b) for n, a, b in zip(names, got, exact, strict=True)} for who, got in first.items()
    }
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "protocol": {**{k: v for k, v in asdict(config).items() if k != "json"}, "peer": _peer(config), **machine()},
        "seconds": seconds,
        "medians": medians,
        "ratio": medians["xmodal"] / medians["peer"],
        "peak bytes": memory,
        "distance from float64": errors,
    }
    if config.json:
        write_json(config.json, result)
    _print(result)
    return result


def _losses(config: Config) -> tuple[Callable[..., Tensor], Callable[..., Tensor], bool]:
    """Ours, the peer's, and whether they take a bias."""
    import torch
    from open_clip.loss import ClipLoss, SigLipLoss

    from xmodal.objectives import clip_loss, nt_xent_loss, siglip_loss

    if config.what == "clip":
        return lambda i, t, s: clip_loss(i, t, s, keep_bytes=config.keep_mib * 2**20), ClipLoss(), False
    if config.what == "siglip":
        return siglip_loss, SigLipLoss(), True

    def whole(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
        rows = torch.cat([first, second])
        logits = (scale * rows @ rows.T).masked_fill(torch.eye(len(rows), dtype=torch.bool), float("-inf"))
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(rows)).roll(len(first)))

    return lambda i, t, s: nt_xent_loss(i, t, 1 / s), whole, False


def _peer(config: Config) -> str:
    from importlib.metadata import version

    if config.what == "nt_xent":
        return "cross-entropy of the whole matrix, torch's autograd"
    return f"open_clip {version('open_clip_torch')}, {'ClipLoss' if config.what == 'clip' else 'SigLipLoss'}"


def _distance(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("median s", "fastest", "peak MiB", "loss ±", "gradients ±", "scale ±"):
        table.add_column(column, justify="right")
    for name, times in result["seconds"].items():
        errors, peak = result["distance from float64"][name], result["peak bytes"][name]
        gradients = max(errors["image"], errors["text"])
        table.add_row(
            name,
            *(f"{value:.3f}" for value in (result["medians"][name], min(times))),
            "" if peak is None else f"{peak / 2**20:.0f}",
            *(f"{value:.0e}" for value in (errors["loss"], gradients, errors["scale"])),
        )
    table.add_row("xmodal / peer", f"{result['ratio']:.2f}")
    Console(highlight=False).print(table)
    print_protocol({"±": "distance from float64 in parts of it", **result["protocol"]})


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval losses"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
