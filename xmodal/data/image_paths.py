"""Where the images that a table names are: beside the table, or else in the working directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from xmodal.errors import InputError


def resolve(folder: Path, name: str) -> Path:
    """The path of an image: relative to the table's folder, then to the working directory; it may not be there."""
    # os.path answers False for a name that is too long or has a NUL, where Path raises.
    beside = folder / name
    return beside if os.path.exists(beside) or not os.path.exists(name) else Path(name)


def with_most(folders: Sequence[Path], names: Collection[str], looked_at: int = 20) -> Path:
    """Of the folders that images may lie in, that in which most of the first ones are; of several the first."""
    some = list(islice(names, looked_at))
    return max(folders, key=lambda folder: sum(os.path.isfile(folder / name) for name in some if len(name) < 4096))


def require_some(table: Path, folder: Path, names: Collection[str]) -> None:
    """InputError if none of the images is there: then the table lies in the wrong place, and not the images."""
    if any(os.path.isfile(resolve(folder, name)) for name in names):
        return
    first = next(iter(names))
    shown = first if len(first) <= 200 else first[:200] + "…"
    folders = dict.fromkeys([str(folder.resolve()), str(Path.cwd())])
    raise InputError(
        f"None of the {len(names)} images of {table} is there. "
        f"The first is {shown!r}, looked for in {' and '.join(folders)}."
    )
