"""Rows of a Hugging Face dataset: of the hub, or of a local folder in the hub's form.

Spec: `hf-dataset:ORG/NAME_OR_FOLDER[@REVISION]`, a configuration after a comma: `hf-dataset:mteb/stsbenchmark-sts`,
`hf-dataset:nyu-mll/glue,stsb`. Datasets with code of their own are not run. With `,streaming` behind it pictures are
not downloaded first; see `xmodal.data.table_names`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from xmodal.errors import InputError, nearest

PREFIX = "hf-dataset:"
STREAMING = ("streaming", "streaming=true")  # as `datasets` calls it; in lower case
FILES = {".parquet": "parquet", ".arrow": "arrow"}


def open_dataset(spec: str, split: str) -> Any:
    """A `datasets.Dataset` of one split. Raises InputError for what can't be opened and for an unknown split."""
    import datasets

    if is_streamed(spec):
        raise InputError(f"{spec}: only pictures are streamed. Without ',{STREAMING[0]}' it is downloaded once.")
    name, configuration, revision = _parts(spec)
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        if (kind := _kind_of_file(name)) is not None:
            return datasets.load_dataset(kind, data_files=name, split="train")
        if os.path.isfile(os.path.join(name, "state.json")):  # what save_to_disk wrote
            return datasets.load_from_disk(name)
        if os.path.isfile(os.path.join(name, "dataset_dict.json")):
            return _saved(name)[split]
        return datasets.load_dataset(name, configuration, split=split, revision=revision)
    except Exception as error:  # a hub fails in many ways, each with its own class
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        known = splits_of_dataset(spec)
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


def is_dataset(spec: str) -> bool:
    """Whether `datasets` opens it: hf-dataset:…, a parquet or arrow file, or a folder of a saved or the hub's form."""
    if spec.startswith(PREFIX) or _kind_of_file(spec):
        return True
    if not os.path.isdir(spec):
        return False
    inside = [*os.listdir(spec), *(os.listdir(data) if os.path.isdir(data := os.path.join(spec, "data")) else [])]
    return any(name in ("state.json", "dataset_dict.json") or _suffix(name) in FILES for name in inside)


def is_streamed(spec: str) -> bool:
    """Whether it asks for a dataset of the hub to be read without a download."""
    return spec.startswith(PREFIX) and spec.rpartition(",")[2].lower() in STREAMING


def streamed(spec: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and revision of one that is. Raises InputError for what lies here."""
    found = _parts(spec.rpartition(",")[0])
    if os.path.exists(found[0]):
        raise InputError(f"{found[0]} lies here and is mapped, not streamed: leave ',{STREAMING[0]}' away.")
    return found


def splits_of_dataset(spec: str) -> list[str]:
    """The names of its splits; none where that can't be told."""
    import datasets

    name, configuration, revision = _parts(spec)
    if _kind_of_file(name) or os.path.isfile(os.path.join(name, "state.json")):
        return []
    try:
        if os.path.isfile(os.path.join(name, "dataset_dict.json")):
            return list(_saved(name))
        return datasets.get_dataset_split_names(name, configuration, revision=revision)
    except Exception:  # what is wrong is told by whoever opens it
        return []


def _saved(name: str) -> Any:
    import datasets

    return datasets.load_from_disk(name)


def _parts(spec: str) -> tuple[str, str | None, str | None]:
    """Name or folder, configuration and revision."""
    name, _, configuration = spec.removeprefix(PREFIX).partition(",")
    revision = ""
    if not os.path.exists(name):
        name, _, revision = name.partition("@")
    return name, configuration or None, revision or None


def _kind_of_file(name: str) -> str | None:
    return FILES.get(_suffix(name)) if os.path.isfile(name) else None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
