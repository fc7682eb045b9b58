"""mteb: its tasks, data and metrics on any model of texts, of images or of both, in its own form of results.

    xmodal eval mteb st:all-MiniLM-L6-v2 --tasks STSBenchmark SICK-R
    xmodal eval mteb runs/clip --tasks CIFAR10ZeroShot Flickr30kI2TRetrieval --output results
    xmodal eval mteb runs/simcse --benchmarks "MTEB(eng, v2)" --output results
    xmodal eval mteb runs/clip --mock

Needs `pip install "xmodal[mteb]"`. In Python: mteb.evaluate(xmodal.interop.mteb.as_mteb("runs/clip"), tasks).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import Failed, InputError

if TYPE_CHECKING:
    from xmodal.evaluators.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[str]
    """A run folder, open_clip:MODEL[/PRETRAINED], st:ID_OR_FOLDER and the other forms of `xmodal list`."""
    tasks: tuple[str, ...] = ()
    """Tasks by mteb's names, as `mteb available-tasks` lists them."""
    benchmarks: tuple[str, ...] = ()
    """All tasks of these benchmarks, as `mteb available-benchmarks` lists them."""
    mock: bool = False
    """mteb's mock run instead: every kind of task that the model fits, on a few made-up rows, without a network."""
    data: Path | None = None
    """A folder with copies of datasets' repositories, such as FOLDER/mteb/stsbenchmark-sts, which are read instead of
    those on the hub."""
    prompts: tuple[str, ...] = ()
    """KEY=TEXT: what is put before texts, such as "query=query: " "document=passage: "; a key may also be a task or a
    type of tasks. If not given, the prompts that a sentence encoder came with."""
    name: str | None = None
    """ORGANISATION/MODEL, under which mteb files the results; if not given, the hub's name, or xmodal/ and the last
    part of the spec."""
    batch_size: int = 256
    """Images or texts that are encoded at a time."""
    output: Path | None = None
    """Write results into this folder in mteb's form; a task whose results are there already is not run again."""
    json: Path | None = None
    """Write protocol and main scores here as well."""

    def check(self) -> None:
        require(self, "batch_size", lambda v: v >= 1, "at least 1")
        require(self, "output", lambda v: v.is_dir() or not v.exists(), "a folder")
        require(self, "name", lambda v: "/" in v, "ORGANISATION/MODEL")
        require(self, "prompts", lambda v: all("=" in one for one in v), "KEY=TEXT for each")
        if self.mock == bool(self.tasks or self.benchmarks):
            raise InputError("Expected either --tasks or --benchmarks, or --mock.")
        if self.mock and (self.output or self.json or self.data):
            raise InputError("--mock has no scores to write and reads no data: leave out --output, --json and --data.")


def run(config: Config) -> dict[str, Any]:
    """Embed, score, print; returns protocol and scores, of a mock run what became of each task."""
    if find_spec("mteb") is None:
        raise InputError('This needs mteb: pip install "xmodal[mteb]"')
    from xmodal import distributed

    accelerator = distributed.start("fp32")
    if distributed.processes() > 1:
        raise InputError("mteb runs on one process.")
    from xmodal.interop.mteb import as_mteb
    from xmodal.interop.mteb_tasks import chosen, require_modalities

    tasks = chosen(config.tasks, config.benchmarks)
    prompts = dict(one.split("=", 1) for one in config.prompts)
    model = as_mteb(config.model, name=config.name, prompts=prompts, device=accelerator.device)
    if config.mock:
        return mock(model)
    require_modalities(tasks, config.model, model.mteb_model_meta.modalities)
    return score(config, model, tasks)


def score(config: Config, model: Any, tasks: Sequence[Any]) -> dict[str, Any]:
    """The data of all tasks is there before the first is run."""
    import datasets
    import mteb

    from xmodal import __version__
    from xmodal.evaluators.scores import print_protocol, write_scores
    from xmodal.interop.mteb_tasks import fetch, parts, use_copies

    meta, bar = model.mteb_model_meta, sys.stderr.isatty()
    if not bar:
        datasets.disable_progress_bars()
    if config.data is not None:
        use_copies(tasks, config.data)
    about = {task.metadata.name: _about(task) for task in tasks}
    done = _done(config.output, tasks, meta)
    fetch(task for task in tasks if task not in done)
    cache = mteb.ResultCache(config.output) if config.output else None
    scores: Scores = {}
    for task in tasks:
        found = mteb.evaluate(
            model,
            task,
            cache=cache,
            encode_kwargs={"batch_size": config.batch_size, "show_progress_bar": bar},
            show_progress_bar=bar,
        )
        for part in parts([task]):
            part.unload_data()
        for split, subsets in found.task_results[0].scores.items():
            values = [subset["main_score"] for subset in subsets]
            name = f"{task.metadata.name}/{split}/{task.metadata.main_score}"
            scores[name] = {"value": sum(values) / len(values), "low": float("nan"), "high": float("nan")}
    protocol = {
        "model": config.model,
        "task": f"mteb {mteb.__version__}: its tasks, data and metrics; the mean over a split's subsets",
        "tasks": about,
        "results of before": ", ".join(task.metadata.name for task in done) or "none",
        "prompts": ", ".join(f"{key}: {text!r}" for key, text in (model.model_prompts or {}).items()) or "none",
        "batch size": config.batch_size,
        "weights": meta.revision,
        "filed under": meta.name,
        "interval": "none: mteb has single figures; those of xmodal eval sts, retrieval and zeroshot have theirs",
        "xmodal": __version__,
    }
    if config.json:
        write_scores(config.json, protocol, scores)
    _print(["×100", "split", "figure", "score"], [_row(name, figures["value"]) for name, figures in scores.items()])
    print_protocol(protocol)
    return {"protocol": protocol, "scores": scores}


def mock(model: Any) -> dict[str, Any]:
    """What became of each task that the model fits. Raises Failed if one went wrong."""
    import mteb

    run = {name: status for name, status in mteb.mock_run(model).items() if status is not None}
    became = {name: getattr(status, "exception", None) for name, status in run.items()}
    _print(["mock task", "passed"], [[name, "yes" if why is None else f"no: {why}"] for name, why in became.items()])
    if failed := [name for name, why in became.items() if why is not None]:
        raise Failed(f"{len(failed)} of {len(became)} mock tasks failed: {', '.join(failed)}.")
    takes = " and ".join(model.mteb_model_meta.modalities)
    print(f"All {len(became)} mock tasks of mteb {mteb.__version__} with {takes} passed.")
    return {"passed": list(became)}


def _done(output: Path | None, tasks: Sequence[Any], meta: Any) -> list[Any]:
    """The tasks whose results are there, such that mteb takes them as they are."""
    import mteb

    if output is None or not output.is_dir():  # mteb would make the folder
        return []
    cache = mteb.ResultCache(output)
    found = [(task, cache.load_task_result(task.metadata.name, meta)) for task in tasks]
    return [t for t, old in found if old and old.is_mergeable(t) and not old.get_missing_evaluations(t)]


def _about(task: Any) -> str:
    told = task.metadata.dataset
    return f"{told['path']} at {told.get('revision', 'no revision')}; {', '.join(task.eval_splits)}"


def _row(name: str, value: float) -> list[str]:
    task, split, figure = name.rsplit("/", 2)
    return [task, split, figure.replace("_", " "), f"{value * 100:.2f}"]


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from xmodal.evaluators.scores import plain

    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column == "score" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(highlight=False, width=Console(width=10_000).measure(table).maximum).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal eval mteb"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
