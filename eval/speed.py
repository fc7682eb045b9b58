"""How fast, how small and how exact xmodal is on this machine, beside the libraries that people use for the same.

In turn in one run, on the GPU where there is one. A figure means something on an idle machine only: what others took
of the CPU meanwhile stands beside it.

    xmodal eval speed                               retrieval, against faiss
    xmodal eval speed clip                          symmetric InfoNCE, against open_clip
    xmodal eval speed clip --noise 3 --scale 100    the same for a batch that is almost solved
    xmodal eval speed siglip --pairs 4096
    xmodal eval speed nt_xent --pairs 2048
    xmodal eval speed sup_con --pairs 2048          with classes, against pytorch-metric-learning
    xmodal eval speed triplet --pairs 2048 --mining hard           the same
    xmodal eval speed cached --pairs 4096           the loss of a cached step, against sentence-transformers
    xmodal eval speed grad_cache                    a step in slices, against the step in one piece
    xmodal eval speed text --data captions.csv      a text tower's step, against one that fills its rows up
    xmodal eval speed encode --data lines.txt --model st:FOLDER    sentences, against sentence-transformers
    xmodal eval speed simcse --data lines.txt --val STS_FOLDER --model st:FOLDER --layers 3 --steps 60 --batch-size 128
                                                    training of sentences, against sentence-transformers' own trainer
    xmodal eval speed pretrain --method simclr --data cifar10/train.parquet --epochs 3
                                                    training of images alone, against lightly's modules
    xmodal eval speed step --data captions.csv      training from files on, against open_clip's own trainer
    xmodal eval speed decode --data FOLDER          pictures from files to views, against Pillow as open_clip reads
    xmodal eval speed fits                          the largest batch whose loss fits into this machine's memory

`step` starts each trainer several times; with ViT-B-32 on two cores that is twenty minutes, with --steps 4 --repeats 2
ten.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from xmodal.benchmarks.timing import Contest


@dataclass(frozen=True, kw_only=True)
class Config:
    what: tyro.conf.Positional[
        Literal[
            "retrieval",
            "clip",
            "siglip",
            "nt_xent",
            "sup_con",
            "triplet",
            "cached",
            "grad_cache",
            "text",
            "encode",
            "simcse",
            "pretrain",
            "step",
            "decode",
            "fits",
        ]
    ] = "retrieval"
    """What to measure; see above."""
    images: int = 5000
    """retrieval: images; 5000 with 25000 texts is the size of COCO's test set."""
    texts: int = 25000
    """retrieval: texts, dealt out to the images in turn."""
    pairs: int | None = None
    """Losses: pairs in the batch, 8192 if not given; sup_con, triplet: pictures, 2048; grad_cache: 1024; text:
    captions, 256."""
    width: int = 512
    """Numbers in an embedding; 512 is that of CLIP's ViT-B/32."""
    scale: float = 14.3
    """Losses: 1 / temperature; 14.3 is where CLIP begins, 100 where it ends."""
    noise: float | None = None
    """Losses: texts are images plus so much noise, instead of random: the less, the more nearly solved."""
    mining: Literal["hard", "semi_hard", "all"] = "hard"
    """triplet: which triplets; the peer has semi_hard and all for batches of up to 512 alone."""
    pictures_per_class: int = 8
    """sup_con, triplet: how many of each class a batch has."""
    keep_mib: int = 0
    """clip: memory in which exponentials may be kept for the backward pass."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Losses: the type of the embeddings. text, step, pretrain: bf16 is autocast of theirs and
    ours."""
    micro_batch: int = 64
    """grad_cache: pairs in a slice."""
    data: str | None = None
    """text, step: a table of picture files and captions. encode: sentences, one a line or in a column of a table.
    decode: a folder of pictures; some are made if it isn't given. pretrain: labelled pictures, of one size."""
    column: str | None = None
    """encode: the column of sentences, if it has no usual name."""
    sentences: int = 5000
    """encode: how many of the first."""
    model: str = "ViT-B-32"
    """text, step: a model of open_clip. encode: st:FOLDER. simcse: st:, hf:, or the folder of a run."""
    val: str | None = None
    """simcse: sets of scored pairs."""
    leave_out: tuple[str, ...] = ()
    """simcse: files whose texts are not trained on."""
    layers: int | None = None
    """simcse: begin with so many of the model's lower layers."""
    lr: float = 5e-5
    """simcse: of both."""
    seeds: int = 3
    """simcse, pretrain: how often each is trained."""
    method: Literal["simclr", "moco", "byol", "barlow_twins"] = "simclr"
    """pretrain: which recipe."""
    epochs: float = 3
    """pretrain: how long."""
    workers: int = 1
    """pretrain: processes that make views, of both."""
    batch_size: int = 64
    """step, simcse: pairs in a step."""
    steps: int = 8
    """step: how many are timed each time; simcse: how many are trained."""
    repeats: int = 5
    """How often each is timed, after a first time that isn't."""
    json: Path | None = None
    """Write the figures here as well."""

    def check(self) -> None:
        for name in ("pairs", "width", "repeats", "micro_batch", "batch_size", "steps", "sentences", "seeds"):
            require(self, name, lambda v: v >= 1, "at least 1")
        require(self, "images", lambda v: v >= 10, "at least 10: faiss is asked for so many neighbours")
        require(self, "texts", lambda v: v >= self.images, "at least as many as images: each needs one")
        for name in ("scale", "epochs"):
            require(self, name, lambda v: v > 0, "more than 0")
        for name in ("keep_mib", "noise", "workers"):
            require(self, name, lambda v: v >= 0, "0 or more")
        captions, sentences = "a table of picture files and captions (CSV, TSV)", "sentences: lines, or a table"
        wanted = {"text": captions, "step": captions, "encode": sentences, "simcse": sentences}
        wanted["pretrain"] = "pictures with classes: a folder, a table, parquet"
        if self.what in wanted and self.data is None:
            raise InputError(f"xmodal eval speed {self.what} needs --data, {wanted[self.what]}.")
        if self.what == "simcse" and self.val is None:
            raise InputError("xmodal eval speed simcse needs --val, sets of scored pairs; see xmodal eval sts --help.")


def run(config: Config) -> dict[str, Any]:
    """Measure, print; returns protocol and figures, which --json also writes."""
    from xmodal.evaluators.scores import write_json

    if config.what == "fits":
        from xmodal.benchmarks.fits import fits

        result = fits("clip", config.width)
        _print_fits(result)
    elif config.what == "decode":
        from xmodal.benchmarks import decode

        result = decode.compare(config.data, config.repeats)
        _print_kinds(result)
    elif config.what == "step":
        from xmodal.benchmarks import train_step

        assert config.data is not None
        result = train_step.compare(
            config.data, config.model, config.batch_size, config.steps, config.precision, config.repeats
        )
        _print(result)
    elif config.what == "simcse":
        from xmodal.benchmarks import sentence_training

        assert config.data is not None
        assert config.val is not None
        result = sentence_training.compare(
            *(config.model, config.data, config.val),
            leave_out=config.leave_out,
            layers=config.layers,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            precision=config.precision,
            seeds=range(config.seeds),
        )
        _print(result)
    elif config.what == "pretrain":
        from xmodal.benchmarks import pretraining

        assert config.data is not None
        result = pretraining.compare(
            config.method,
            config.data,
            epochs=config.epochs,
            workers=config.workers,
            precision=config.precision,
            seeds=range(config.seeds),
        )
        _print(result)
    else:
        from xmodal.benchmarks.timing import measure

        result = measure(_contest(config), config.repeats)
        _print(result)
    if config.json:
        write_json(config.json, result)
    return result


def _contest(config: Config) -> Contest:
    if config.what == "retrieval":
        from xmodal.benchmarks import retrieval

        return retrieval.contest(config.images, config.texts, config.width)
    if config.what == "grad_cache":
        from xmodal.benchmarks import grad_cache

        return grad_cache.contest(config.pairs or 1024, config.micro_batch)
    if config.what == "encode":
        from xmodal.benchmarks import encode

        assert config.data is not None
        return encode.contest(config.model, config.data, config.column, config.sentences)
    import torch

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if config.what == "text":
        from xmodal.benchmarks import text_tower

        assert config.data is not None
        return text_tower.contest(config.data, config.model, config.pairs or 256, dtype)
    if config.what in ("sup_con", "triplet"):
        from xmodal.benchmarks import class_losses

        pictures = config.pairs or 2048
        return class_losses.contest(
            config.what, config.mining, pictures, config.pictures_per_class, config.width, dtype
        )
    from xmodal.benchmarks import losses

    keep = config.keep_mib * 2**20
    return losses.contest(config.what, config.pairs or 8192, config.width, config.scale, config.noise, keep, dtype)


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    extra = list(dict.fromkeys(name for figures in result["columns"].values() for name in figures))
    table.add_column("", no_wrap=True)
    for column in ("median s", "fastest", "peak MiB", *extra):
        table.add_column(column, justify="right", no_wrap=True)
    for who in dict.fromkeys([*result["columns"], *result["seconds"]] if extra else result["seconds"]):
        peak = result["peak bytes"].get(who)
        figures = result["columns"].get(who, {})
        table.add_row(
            who,
            *(f"{result[kind][who]:.4f}" if who in result[kind] else "" for kind in ("medians", "fastest")),
            "" if peak is None else f"{peak / 2**20:.0f}",
            *(_figure(name, figures.get(name)) for name in extra),
        )
    table.add_section()
    ours = next(iter(result["seconds"]))
    for who, ratio in result["ratio of medians"].items():
        rates = result.get("ratio of pairs a second", {})
        told = [f"{rates[who]:.2f}"] if who in rates else []
        name = who if " / " in who else f"{ours} / {who}"
        table.add_row(name, f"{ratio:.2f}", f"{result['ratio of fastest'][who]:.2f}", "", *told)
    _wide_enough().print(table)
    print_protocol({"what": result["what"], **result["protocol"]})


def _wide_enough() -> Console:
    """A terminal's width, but never so little that figures are cut."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, 110)
    return console


def _figure(name: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    if name == "cosine":
        return f"{value:.6f}"
    if name.endswith(("/s", " s")):
        return f"{value:.1f}"
    return f"{value:.0e}" if name.endswith("±") else f"{100 * value:.1f}"


def _print_kinds(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("files", "theirs ms", "ours ms", "ratio", "least", "dB", "exact", "least", "dB"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, found in result["kinds"].items():
        milliseconds = (f"{1000 * found[who]:.2f}" for who in ("open_clip", "xmodal"))
        gains = (
            "–" if found[name + how] is None else f"{found[name + how]:.{digits}f}"
            for how in ("", ", exact")
            for name, digits in (("ratio", 2), ("least ratio", 2), ("PSNR", 1))
        )
        table.add_row(kind, f"{found['files']}", *milliseconds, *gains)
    _wide_enough().print(table)
    print_protocol({"what": result["what"], **result["protocol"]})


def _print_fits(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from xmodal.evaluators.scores import print_protocol

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("largest batch", "KiB a pair", "bytes a pair of pairs"):
        table.add_column(column, justify="right")
    for who, found in result["fits"].items():
        figures = found["bytes a pair"] / 1024, found["bytes a pair of pairs"]
        table.add_row(who, f"{found['largest batch']:,}", *(f"{value:.1f}" for value in figures))
    _wide_enough().print(table)
    print_protocol(result["protocol"])
    print("\nThis is the loss alone. Towers take memory, too: train with --micro-batch auto, which finds their slice.")


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if "--what" in given:  # `speed --what step` and `speed step` are one
        given.remove("--what")
    run(parse(Config, given, prog="xmodal eval speed"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
