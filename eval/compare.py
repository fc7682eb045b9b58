"""Which of several models is better, by how much, and how sure that is: on the same items, resampled together.

    xmodal eval compare runs/a runs/b --data captions.csv --html a-and-b.html
    xmodal eval compare timm:resnet18 runs/simclr --data cifar10/train.parquet
    xmodal eval compare st:all-MiniLM-L6-v2 runs/simcse --data STS_FOLDER --json differences.json
    xmodal eval compare runs/a runs/b runs/c --html curves.html                the scores and curves they recorded

The first model is what the others are compared with. Dual encoders are asked for retrieval or, of class folders,
zero-shot classes; image encoders by k nearest neighbours and a linear classifier; sentence encoders for similarity. The
page has figures and differences, maps of the embeddings, the same queries side by side, and the curves of training.
"""

from __future__ import annotations

import json
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
    from xmodal.evaluators.compare import Compared
    from xmodal.evaluators.scores import Scores

Task = Literal["retrieval", "zeroshot", "knn", "linear", "sts"]


@dataclass(frozen=True, kw_only=True)
class Config:
    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders and the other forms of `xmodal list`; all are compared with the first."""
    data: str | None = None
    """What all are asked: pairs, pictures with classes, or sets of sentence pairs. Without it run folders are compared
    by what they recorded themselves."""
    tasks: tuple[Task, ...] = ()
    """Which questions; without it those that fit the models and the data."""
    split: str | None = None
    """retrieval and zeroshot: the split of the data; without it test if there is one, else val, else all."""
    test: str | None = None
    """knn and linear: what to judge on, a split or other data; see `xmodal eval probe`."""
    hold_out: float = 0.2
    """knn and linear: the fraction of data without splits that is held out to judge on."""
    image_size: int | None = None
    """knn and linear: pixels a side, instead of those that each model takes."""
    templates: str = "simple"
    """zeroshot: openai (CLIP's 80 for ImageNet), simple, none, or a file of lines with {} in them."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    caption_column: str | None = None
    """The column of captions, if it has no usual name."""
    label_column: str | None = None
    """The column of classes, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""
    json: Path | None = None
    """Write protocols, scores, differences and tests here."""
    html: Path | None = None
    """Write the page here."""

    def check(self) -> None:
        require(self, "hold_out", lambda v: 0 < v < 1, "more than 0, less than 1")
        require(self, "image_size", lambda v: v >= 8, "at least 8")
        if len(self.models) < 2:
            raise InputError(f"Comparing takes two models or more; given: {', '.join(self.models)}.")
        if twice := [spec for i, spec in enumerate(self.models) if spec in self.models[:i]]:
            raise InputError(f"The model {twice[0]!r} is given twice.")
        for name in ("tasks", "test", "split"):
            if self.data is None and getattr(self, name):
                raise InputError(f"--{name} without --data: there is nothing to ask the models.")


def run(config: Config) -> dict[str, Any]:
    """Ask, compare, print; returns by task protocol, scores, differences and tests."""
    from xmodal import distributed
    from xmodal.evaluators.scores import write_json
    from xmodal.report.history import read_history

    device = distributed.start("fp32").device
    histories = {m: read_history(p) for m in config.models if (p := Path(m) / "metrics.jsonl").is_file()}
    recorded = {m: s for m in config.models if (s := _recorded(Path(m) / "scores.json"))}
    compared = ask(config, device) if config.data is not None else []
    if not compared and len(recorded) < 2 and len(histories) < 2:
        raise InputError(
            "Without --data there is nothing to compare: fewer than two of the models are run folders with a "
            "scores.json or a metrics.jsonl."
        )
    told = {one.task: sentences(config.models, one) for one in compared}
    found = {
        one.task: {
            "protocol": {"models": ", ".join(config.models), **one.protocol},
            "scores": _by_model(config.models, one.scores),
            "differences": _by_model(config.models[1:], one.differences),
            **({"mcnemar": dict(zip(config.models[1:], one.mcnemar, strict=True))} if one.mcnemar else {}),
            "said": told[one.task],
        }
        for one in compared
    }
    if distributed.is_first():
        if config.json:
            write_json(config.json, {**found, "recorded": recorded})
        for one in compared:
            show(config.models, one, told[one.task])
        if not compared:
            show_recorded(recorded)
        if config.html:
            from xmodal.report.comparison import write_comparison

            write_comparison(config.html, config.models, compared, told, histories, recorded)
            print(f"The page is {config.html}")
    return found


def ask(config: Config, device: Any) -> list[Compared]:
    """Every task that fits. Raises InputError where models and data have none in common."""
    from xmodal.data.labelled import read_labelled
    from xmodal.data.pictures import PictureColumns, open_pictures, open_to_judge
    from xmodal.data.source import Columns, held_out_split, open_source
    from xmodal.data.sts import read_sts
    from xmodal.evaluators import compare
    from xmodal.evaluators.templates import templates

    assert config.data is not None
    models, data = config.models, config.data
    tasks = config.tasks or fitting(models, data)
    found = []
    if "sts" in tasks:
        found.append(compare.compare_sentences(models, read_sts(data), device))
    if "retrieval" in tasks:
        columns = Columns(config.image_column, config.caption_column, config.split_column)
        source = open_source(data, config.split or held_out_split(data, columns), columns)
        found.append(compare.compare_pairs(models, source, device))
    if "zeroshot" in tasks:
        prompts, name = templates(config.templates), config.templates
        if data.partition("/")[0] == "glyphs" and not Path(data).exists():
            pictures: Any = open_pictures(data if "/" in data else f"{data}/unseen_typeface")
        else:
            pictures = read_labelled(
                Path(data),
                image_column=config.image_column,
                label_column=config.label_column,
                split=config.split,
                split_column=config.split_column,
            )
            if pictures.templates:
                prompts, name = pictures.templates, "those of the data"
        found.append(compare.compare_zero_shot(models, pictures, prompts, name, device))
    if probes := [task for task in ("knn", "linear") if task in tasks]:
        columns = PictureColumns(config.image_column, config.label_column, config.split_column)
        train, test = open_to_judge(data, config.test, config.hold_out, columns)
        found += compare.compare_probes(models, train, test, probes, device, config.image_size)
    return found


def fitting(models: Sequence[str], data: str) -> tuple[Task, ...]:
    """The tasks that all of the models can be asked of this data."""
    from xmodal.data.pictures import open_pictures
    from xmodal.evaluators.compare import kind_of

    kinds = {spec: kind_of(spec) for spec in models}
    if set(kinds.values()) == {"sentence"}:
        return ("sts",)
    if "sentence" in kinds.values():
        said = ", ".join(f"{spec} is {'an' if kind == 'image' else 'a'} {kind} encoder" for spec, kind in kinds.items())
        raise InputError(f"These models can't be asked the same: {said}.")
    if set(kinds.values()) != {"dual"}:
        return ("knn", "linear")
    return ("zeroshot",) if Path(data).is_dir() and open_pictures(data).labels is not None else ("retrieval",)


def sentences(models: Sequence[str], one: Compared) -> list[str]:
    """What is found, in words: the first places of each of the others against the first model."""
    from xmodal.evaluators.paired import said
    from xmodal.report.names import parse, short_names

    models = short_names(models)

    found = []
    for i, (model, differences) in enumerate(zip(models[1:], one.differences, strict=True)):
        for name, difference in differences.items():
            if parse(name).is_first_place or name == "average" or one.task == "sts":
                test = one.mcnemar[i] if one.mcnemar and name == "top1" else None
                question = parse(name).question
                figure = name if not question else f"{parse(name).figure} of {question}"
                found.append(said(models[0], model, figure, difference, test))
    return found


def show(models: Sequence[str], one: Compared, told: Sequence[str]) -> None:
    """The scores of the first model, the differences of the others, what they say, and the protocol."""
    from xmodal.evaluators.scores import print_protocol
    from xmodal.report.tables import changes

    print(f"\n{one.task}")
    rows = []
    for i, model in enumerate(models[1:]):
        for question, figures in changes(one.scores[0], one.scores[i + 1], one.differences[i]):
            rows += [
                (model, f"{question} {c.figure}".strip(), c.before.value, c.after.value, c.difference) for c in figures
            ]
    _print(models[0], [(m, f, b, a, f"{d.value}  {d.interval}".strip()) for m, f, b, a, d in rows])
    for sentence in told:
        print(sentence)
    print_protocol(one.protocol)


def show_recorded(recorded: dict[str, Scores]) -> None:
    from xmodal.report.tables import changes

    if len(recorded) < 2:
        return
    first, *others = recorded
    rows = []
    for other in others:
        both = {name: score for name, score in recorded[other].items() if name in recorded[first]}
        for question, figures in changes(recorded[first], both, {}):
            rows += [
                (other, f"{question} {c.figure}".strip(), c.before.value, c.after.value, c.difference.value)
                for c in figures
            ]
    print("\nAs the runs recorded them, each by its own protocol; differences without an interval")
    _print(first, rows)


def _print(first: str, rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    for name, side in (("against " + first, "left"), ("×100, ranks as they are", "left"), ("first", "right"),
                       ("this", "right"), ("difference, 95% interval", "right")):  # fmt: skip
        table.add_column(Text(plain(name)), justify=side)  # pyright: ignore[reportArgumentType]
    for i, (model, *cells) in enumerate(rows):
        table.add_row(Text(plain(model) if not i or rows[i - 1][0] != model else ""), *(Text(plain(c)) for c in cells))
    needed = Console(width=10_000).measure(table).maximum  # a figure that is cut short is worse than a line that wraps
    Console(highlight=False, width=needed).print(table)


def _by_model(models: Sequence[str], scores: Sequence[Scores]) -> Scores:
    return {f"{m}/{name}": score for m, some in zip(models, scores, strict=True) for name, score in some.items()}


def _recorded(path: Path) -> Scores:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return {str(name): {end: score[end] for end in ("value", "low", "high")} for name, score in scores.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no run, or one that isn't done


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval compare"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
