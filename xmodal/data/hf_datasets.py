"""Rows of a Hugging Face dataset: of the hub, or of a local folder in the hub's form.

Spec: `hf-dataset:ORG/NAME_OR_FOLDER[@REVISION]`, a configuration after a comma: `hf-dataset:mteb/stsbenchmark-sts`,
`hf-dataset:nyu-mll/glue,stsb`. Datasets with code of their own are not run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from xmodal.errors import InputError, nearest

PREFIX = "hf-dataset:"


def open_dataset(spec: str, split: str) -> Any:
    """A `datasets.Dataset` of one split. Raises InputError for what can't be opened and for an unknown split."""
    import datasets

    name, _, configuration = spec.removeprefix(PREFIX).partition(",")
    revision = None
    if not os.path.isdir(name):
        name, _, revision = name.partition("@")
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        return datasets.load_dataset(name, configuration or None, split=split, revision=revision or None)
    except Exception as error:  # a hub fails in many ways, each with its own class
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        known = _splits(name, configuration or None, revision or None)
        if known and split not in known:
            text = f"it has no split {split!r}; {nearest(split, known)}"
        raise InputError(f"{spec} cannot be opened: {text}") from error
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()


def dataset_rows(spec: str, split: str) -> tuple[list[str], Iterator[list[str]]]:
    """The names of its columns that hold text or numbers, or lists of them, and its rows, a cell for each column.

    A list becomes its items, one a line. Pictures and sounds are left where they are.
    """
    dataset = open_dataset(spec, split)
    names = [name for name, feature in dataset.features.items() if _is_text(feature)]
    dataset = dataset.select_columns(names)

    def cells() -> Iterator[list[str]]:
        for row in dataset:
            yield [_cell(row[name]) for name in names]

    return names, cells()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_cell, value))
    return "" if value is None else str(value)


def _is_text(feature: Any) -> bool:
    import datasets

    inner = getattr(feature, "feature", feature)  # that of a list
    return isinstance(inner, datasets.Value | datasets.ClassLabel)


def _splits(name: str, configuration: str | None, revision: str | None) -> list[str]:
    import datasets

    try:
        return datasets.get_dataset_split_names(name, configuration, revision=revision)
    except Exception:  # the first error is the one to tell
        return []
