"""Semantic textual similarity (STS12-16, STS-B, SICK-R, or your own pairs), of one model or several.

Spearman's correlation on each set and its average, with 95 % intervals; alignment and uniformity (Wang & Isola 2020)
beside them; several models are compared on the same resamples.

    xmodal eval sts st:all-MiniLM-L6-v2 --data FOLDER_OF_SETS
    xmodal eval sts runs/simcse hf:bert-base-uncased --data hf-dataset:mteb --json scores.json
    xmodal eval sts runs/simcse --data pairs.csv --columns question duplicate similarity
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import InputError

if TYPE_CHECKING:
    from xmodal.evaluators.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Config:
    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, st:ID_OR_FOLDER, hf:ID_OR_FOLDER and the other forms of `xmodal list`; the others are compared with
    the first."""
    data: str
    """A folder of sets (stsb-test.tsv, sickr-test.tsv, sts12.tsv, …, or SentEval's), hf-dataset:mteb,
    hf-dataset:NAME_OR_FOLDER, or one table of two sentences and a score (CSV, TSV)."""
    sets: tuple[str, ...] = ()
    """Which of STS12 STS13 STS14 STS15 STS16 STS-B SICK-R; without it all that are there."""
    sick: Literal["test", "all"] | None = None
    """SICK-R's 4,927 test pairs (SimCSE's) or all 9,927 (mteb's). If not given, test, or what a dataset holds that
    doesn't say which pairs are of the test."""
    text: Literal["raw", "senteval"] = "raw"
    """senteval: the tokenised lower-case columns senteval1 and senteval2 of a table. SentEval's own files are so in any
    case."""
    columns: tuple[str, ...] = ()
    """The columns of the two sentences and the score in a table or dataset, if they have no usual names."""
    split: str | None = None
    """The split of a dataset; without it test."""
    batch_size: int | None = None
    """At most so many sentences are encoded at a time; without it as many as the model thinks fast."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and products in bfloat16, of sentence encoders on devices that have it."""
    json: Path | None = None
    """Write protocol, scores and differences here as well."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")
        if twice := [spec for i, spec in enumerate(self.models) if spec in self.models[:i]]:
            raise InputError(f"The model {twice[0]!r} is given twice.")


def run(config: Config) -> dict[str, Any]:
    """Embed, score, print; returns the protocol, the scores and, of several models, the differences to the first."""
    from xmodal import distributed, load
    from xmodal.data.sts import read_sts
    from xmodal.evaluators.evaluate_sts import compare_sts, judge, protocol
    from xmodal.evaluators.scores import print_protocol, write_scores

    accelerator = distributed.start("fp32")
    sets = read_sts(
        config.data,
        config.sets,
        sick=config.sick,
        text=config.text,
        columns=config.columns,
        split=config.split,
    )
    judged = {  # one model at a time: several need not fit into memory together
        spec: judge(
            load(spec, device=accelerator.device), sets, batch_size=config.batch_size, precision=config.precision
        )
        for spec in config.models
    }
    scores, differences = compare_sts(list(judged.values()), sets)
    by_model = dict(zip(config.models, scores, strict=True))
    apart = dict(zip(config.models[1:], differences, strict=True))
    first, others = config.models[0], config.models[1:]
    about = {"models": ", ".join(config.models)} if others else {"model": first}
    about |= {**protocol(sets, judged), "precision": config.precision}
    if others:
        about["differences"] = f"to {first}; intervals of the difference in the same resamples of the pairs"
    found = {"protocol": about, "scores": _flat(by_model) if others else scores[0]}
    if others:
        found["differences"] = _flat(apart)
    if distributed.is_first():
        if config.json:
            write_scores(config.json, **found)
        print_models(by_model)
        if others:
            print_differences(first, apart)
        print_protocol(about)
    return found


def _flat(by_model: Mapping[str, Scores]) -> Scores:
    return {f"{model}/{name}": score for model, scores in by_model.items() for name, score in scores.items()}


def print_models(by_model: Mapping[str, Scores]) -> None:
    """A row a model, a column a set (×100), then alignment and uniformity as they are; the first's intervals below."""
    rows = []
    for i, (model, scores) in enumerate(by_model.items()):
        rows.append((model, {name: _figure(name, score["value"]) for name, score in scores.items()}))
        if i == 0:
            ends = {name: f"{_figure(name, s['low'])}…{_figure(name, s['high'])}" for name, s in scores.items()}
            rows.append(("  its 95% intervals", ends))
    _print("Spearman ×100", rows)


def print_differences(first: str, apart: Mapping[str, Scores]) -> None:
    """A row a model, a column a set: how far it is above the first, ×100, and the interval of that."""
    rows = []
    for model, scores in apart.items():
        rows.append((model, {name: f"{score['value'] * 100:+.2f}" for name, score in scores.items()}))
        ends = {name: f"{s['low'] * 100:+.2f}…{s['high'] * 100:+.2f}" for name, s in scores.items()}
        rows.append(("  95% interval", ends))
    _print(f"less {first}", rows)


def _figure(name: str, value: float) -> str:
    from xmodal.evaluators.units import is_shown_as_it_is

    return f"{value:.3f}" if is_shown_as_it_is(name) else f"{value * 100:.2f}"


def _print(title: str, rows: list[tuple[str, dict[str, str]]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    table.add_column(Text(plain(title)), no_wrap=True)
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    for name in columns:
        table.add_column(Text(plain(name)), justify="right", no_wrap=True)
    for model, cells in rows:
        table.add_row(Text(plain(model)), *(cells.get(name, "") for name in columns))
    # Ten columns are wider than a narrow terminal, which then wraps them: a figure that is cut short is worse.
    needed = Console(width=10_000).measure(table).maximum
    Console(highlight=False, width=needed).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval sts"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
