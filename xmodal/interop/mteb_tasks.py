"""mteb's tasks by name, with data from the hub or from copies of it; what can't be run is said before anything is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from xmodal.errors import InputError


def chosen(tasks: Sequence[str], benchmarks: Sequence[str]) -> list[Any]:
    """The tasks of these names and those of these benchmarks, each once. InputError for a name that mteb has not."""
    found = [_known("task", name, mteb.get_task) for name in tasks]
    found += [task for name in benchmarks for task in _known("benchmark", name, mteb.get_benchmark).tasks]
    return list({task.metadata.name: task for task in found}.values())


def require_modalities(tasks: Iterable[Any], spec: str, takes: Sequence[str]) -> None:
    """InputError where a task has something that the model doesn't take, naming the first such tasks."""
    beyond = [(task.metadata.name, task.metadata.modalities) for task in tasks]
    beyond = [(name, has) for name, has in beyond if not set(has) <= set(takes)]
    if beyond:
        told = "; ".join(f"{name} has {' and '.join(has)}" for name, has in beyond[:3])
        more = f"; {len(beyond) - 3} more" if len(beyond) > 3 else ""
        raise InputError(f"{spec} takes {' and '.join(takes)}, and {told}{more}.")


def use_copies(tasks: Iterable[Any], folder: Path) -> None:
    """Let each task read folder/ORGANISATION/NAME, where there is such a copy of its data's repository.

    Its revision is "copy" from then on, in mteb's results too: nobody knows of which one it is.
    """
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder.")
    for task in parts(tasks):
        told = dict(task.metadata.dataset)
        if (folder / told["path"]).is_dir():
            changed = {"dataset": {**told, "path": str(folder / told["path"]), "revision": "copy"}}
            task.metadata = task.metadata.model_copy(update=changed)


def fetch(tasks: Iterable[Any]) -> None:
    """Load the data of each task, which mteb then takes. Raises InputError for data that can't be had."""
    for task in parts(tasks):
        try:
            task.load_data()
        except Exception as error:  # hubs, files and what tasks do with both fail in many ways, each with its own class
            path, why = task.metadata.dataset["path"], next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"The data of {task.metadata.name} can't be had: {why}\n"
                f"Without a network, put a copy of {path} into FOLDER/ORGANISATION/NAME and give --data FOLDER."
            ) from error


def parts(tasks: Iterable[Any]) -> Iterator[Any]:
    """Tasks that are made of others stand for these."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from parts(task.metadata.tasks)
        else:
            yield task


def _known(what: str, name: str, get: Any) -> Any:
    try:
        return get(name)
    except KeyError as error:
        near = re.search(r"[Dd]id you mean:? '?(.+?)'?\?$", str(error.args[0]))
        hint = f"; did you mean {near[1]!r}?" if near else "."
        raise InputError(f"mteb {mteb.__version__} has no {what} {name!r}{hint}") from None
