"""Work in parts that are there whole or not at all: what was done before a kill is done.

Beside the output lies `NAME.parts/` with settings.json, which says what makes the rows what they are, and for each part
its rows and a record. The record comes last, is replaced in one move, and holds the hash of the rows: a part that has
none is computed again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.durable import replace_text, sha256, sync
from xmodal.embedding.inputs import Part
from xmodal.errors import InputError


@dataclass(frozen=True)
class Skipped:
    row: int  # of the input
    item: str
    reason: str


@dataclass(frozen=True)
class Record:
    """What became of a part: items (n) that have a row, where each stood in the input, and those that have none."""

    digest: str
    items: list[str]
    rows: list[int]
    skipped: list[Skipped]
    truncated: int
    sha256: str


class Parts:
    """The folder of an output's parts."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + ".parts")

    def claim(self, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Make the folder, or go on in one of the same settings. Raises InputError where it is of others."""
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        file = self.folder / "settings.json"
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            if other := [name for name in settings if before.get(name) != settings[name]]:
                name = other[0]
                raise InputError(
                    f"{self.folder} holds parts with another {name}: {before.get(name)!r} there, {settings[name]!r} "
                    "now.\nWith --overwrite they are thrown away; another --output leaves them alone."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(settings, indent=1))

    def has(self, part: Part) -> bool:
        """Whether the part is done. Raises InputError where it was done for other items."""
        record = self._record(part.number)
        if record is None:
            return False
        if record.digest != part.digest:
            raise InputError(
                f"The input has changed since {self.folder} was begun: its rows from {part.first:,} on are others now."
                "\nWith --overwrite the parts are thrown away; another --output leaves them alone."
            )
        file = self._rows(part.number)
        return file.is_file() and sha256(file) == record.sha256

    def write(self, part: Part, rows: np.ndarray, kept: np.ndarray, skipped: Mapping[int, str], truncated: int) -> None:
        """Put a part's rows (n, d) on disk. kept: (n,) where in the part they stand; skipped: why others don't."""
        file = self._rows(part.number)
        with file.with_suffix(".tmp").open("wb") as stream:
            np.save(stream, rows)
        sync(file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
        record = Record(
            digest=part.digest,
            items=[plain(part.items[i]) for i in kept.tolist()],
            rows=[part.first + i for i in kept.tolist()],
            skipped=[Skipped(part.first + i, plain(part.items[i]), reason) for i, reason in skipped.items()],
            truncated=truncated,
            sha256=sha256(file),
        )
        replace_text(self._file(part.number), json.dumps(asdict(record)))

    def finished(self, number: int) -> list[Record]:
        """The records of the first so many parts. Raises InputError where there are more: the input was longer."""
        if self._record(number) is not None:
            raise InputError(
                f"The input has changed since {self.folder} was begun: it was longer.\n"
                "With --overwrite the parts are thrown away; another --output leaves them alone."
            )
        found = [self._record(i) for i in range(number)]
        return [record for record in found if record is not None]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows of each part, (n, d), one part at a time."""
        number = 0
        while self._rows(number).is_file():
            yield np.load(self._rows(number))
            number += 1

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _rows(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.npy"

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.json"

    def _record(self, number: int) -> Record | None:
        try:
            told = json.loads(self._file(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Record(**{**told, "skipped": [Skipped(**one) for one in told["skipped"]]})


def plain(item: str) -> str:
    """A name in which bytes that are no UTF-8 are "?"."""
    return item.encode(errors="replace").decode()
