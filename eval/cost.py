"""What a run of so many pairs costs on so many devices: time, memory and traffic, from what this device is seen to do.

Formulas, printed beside each figure, and what they assume; nothing is run on more than this one device.

    xmodal eval cost --pairs 12.8e9 --devices 256 --batch-size 128 --bandwidth 25
    xmodal eval cost --model open_clip:ViT-L-14 --pairs 400e6 --devices 64 --micro-batch 64 --fsdp
    xmodal eval cost --pairs 400e6 --devices 64 --pairs-per-second 1500 --activations 20    figures of another device
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xmodal.cli import guard
from xmodal.config import parse, require

ASSUMED = (
    "Data keeps up: pictures are read and decoded while the devices compute.",
    "Every device is as fast as the one measured, and none waits for another; a step ends with the slowest.",
    "Texts are as long as --words; times of a slice are those of the fastest of three on an otherwise idle device.",
    "The loss takes W times as long as on one device: b rows against W·b columns. Above 4,096 pairs it is taken to "
    "grow with the square of b.",
    "With --pairs-per-second encoding once more takes a third of encoding and its gradient.",
    "Collectives are rings; counts, flags and sums of columns, a few numbers a row, are left out.",
    "Traffic is not overlapped with arithmetic, which NCCL does for sharded towers.",
    "Time for evaluation, checkpoints and restarts is not in it.",
)
NEVER_RUN = (
    "NCCL, several machines, several GPUs. Tests run on two and four processes of one CPU over gloo, where losses, "
    "gradients and sharded towers are those of one process; the formulas of traffic are, too, what two such processes "
    "exchange. How long traffic takes was measured nowhere."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    pairs: float
    """Pairs that the run goes through: those of the data times its epochs, such as 12.8e9."""
    devices: int
    """GPUs, or processes on CPUs."""
    model: str = "open_clip:ViT-B-32"
    """Both towers, as `xmodal train clip` takes them."""
    batch_size: int = 1024
    """Pairs in a step on each device."""
    micro_batch: int | None = None
    """Encode so many at a time on each device; all of them if not given."""
    fsdp: bool = False
    """Each device holds a part of the towers."""
    grad_checkpointing: bool = False
    """Activations are computed again."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast."""
    words: int = 11
    """In a caption; 11 is the mean of Flickr8k."""
    bandwidth: float | None = None
    """Gigabytes a second that each device sends, such as 25 for 200 Gb/s; without it traffic counts no time."""
    pairs_per_second: float | None = None
    """Of one device with --micro-batch pairs, towers alone, instead of what is measured here."""
    activations: float | None = None
    """Gigabytes that a slice takes on one device beside weights and gradients, instead of what is measured here."""
    json: Path | None = None
    """Write the figures here as well."""

    def check(self) -> None:
        for name in ("devices", "batch_size", "micro_batch", "words"):
            require(self, name, lambda v: v >= 1, "at least 1")
        for name in ("pairs", "bandwidth", "pairs_per_second", "activations"):
            require(self, name, lambda v: v > 0, "more than 0")
        require(self, "micro_batch", lambda v: v <= self.batch_size, f"at most --batch-size, {self.batch_size}")


def run(config: Config) -> dict[str, Any]:
    """Measure, compute, print; returns protocol and figures, which --json also writes."""
    from dataclasses import replace

    from xmodal.benchmarks.cost import Job, measure, memory, seconds, traffic
    from xmodal.benchmarks.timing import Others, machine
    from xmodal.evaluators.scores import write_json

    slice_size = config.micro_batch or config.batch_size
    with Others() as others:
        one, width, trained, other, largest = measure(
            *(config.model, config.batch_size, slice_size, config.words),
            grad_checkpointing=config.grad_checkpointing,
            bf16=config.precision == "bf16",
            towers_too=not (config.pairs_per_second and config.activations),
        )
    if config.pairs_per_second:
        given = slice_size / config.pairs_per_second
        one = replace(one, slice=given, again=given / 3)
    if config.activations:
        one = replace(one, activations=config.activations * 1e9)
    job = Job(
        pairs=config.pairs,
        devices=config.devices,
        batch=config.batch_size,
        micro_batch=slice_size,
        width=width,
        trained=trained,
        other=other,
        largest=largest,
        fsdp=config.fsdp,
    )
    bandwidth = config.bandwidth and config.bandwidth * 1e9
    times, bytes_sent = seconds(job, one, bandwidth), traffic(job)
    step = sum(times.values())
    result = {
        "protocol": {
            "model": f"{config.model}, {trained + other:,} parameters, {trained:,} trained, rows of {width}",
            "measured on": machine(),
            "CPU taken by others": others.said(),
            "assumed": list(ASSUMED),
            "never run": NEVER_RUN,
        },
        "one device": asdict(one),
        "job": {**asdict(job), "global batch": job.devices * job.batch, "slices": job.slices, "steps": job.steps},
        "seconds of a step": times,
        "bytes that each device sends in a step": bytes_sent,
        "bytes on each device": memory(job, one),
        "run": {
            "hours": job.steps * step / 3600,
            "device hours": job.steps * step * job.devices / 3600,
            "pairs a second": job.devices * job.batch / step,
            "terabytes sent by each device": job.steps * sum(bytes_sent.values()) / 1e12,
            "gigabytes a second for traffic in a tenth of a step": sum(bytes_sent.values())
            / (0.1 * (times["towers"] + times["loss"] + times["optimizer"]))
            / 1e9,
        },
    }
    _print(result)
    if config.json:
        write_json(config.json, result)
    return result


FORMULAS = {
    "towers": "n · slice + (n − 1) · again",
    "loss": "W · (b against b)",
    "optimizer": "AdamW's step, with --fsdp / W",
    "traffic, nothing overlapped": "bytes sent / bandwidth",
    "texts gathered": "4 · (W − 1) · b · d",
    "gradient of texts scattered": "4 · (W − 1) · b · d",
    "gradients summed": "2 · 4 · (W − 1)/W · P",
    "weights gathered": "(3n − 1) · 4 · (W − 1)/W · (P + F)",
    "gradients scattered": "n · 4 · (W − 1)/W · P",
    "weights": "4 · (P + F), with --fsdp / W",
    "gradients": "4 · P, with --fsdp / W",
    "AdamW's two averages": "8 · P, with --fsdp / W",
    "activations of a slice": "measured, or given",
    "embeddings and their gradients": "16 · b · d",
    "gathered texts and their gradient": "8 · W · b · d",
    "gradients while they are summed": "4 · P",
    "a layer and the next, gathered, and their gradient": "8 · L",
}


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    console = Console(highlight=False)
    console.width = max(console.width, 110)
    for title, unit, scale in (
        ("seconds of a step", "s", 1),
        ("bytes on each device", "GB", 1e9),
        ("bytes that each device sends in a step", "MB", 1e6),
    ):
        table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
        table.add_column(title, no_wrap=True)
        table.add_column(unit, justify="right")
        table.add_column("formula")
        for name, value in result[title].items():
            table.add_row(name, f"{value / scale:,.3f}", FORMULAS[name])
        table.add_section()
        table.add_row("together", f"{sum(result[title].values()) / scale:,.3f}", "")
        console.print(table)
        console.print()
    job, run = result["job"], result["run"]
    console.print(
        f"{job['steps']:,} steps of {job['global batch']:,} pairs on {job['devices']} devices: {run['hours']:,.1f} "
        f"hours, {run['device hours']:,.0f} device hours, {run['pairs a second']:,.0f} pairs a second; each sends "
        f"{run['terabytes sent by each device']:,.1f} TB.\nTraffic takes a tenth of a step's arithmetic at "
        f"{run['gigabytes a second for traffic in a tenth of a step']:,.2f} GB/s a device.\n"
    )
    print_protocol({**result["protocol"], "assumed": " ".join(ASSUMED), **{"measured on": _told(result)}})


def _told(result: dict[str, Any]) -> str:
    return ", ".join(result["protocol"]["measured on"].values())


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval cost"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
