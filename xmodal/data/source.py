"""What a data source is, and how a data spec is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder
from xmodal.data.hf_datasets import is_dataset
from xmodal.data.shard_names import is_shards, shard_names, shard_splits
from xmodal.data.table_names import is_tables, table_files, table_splits
from xmodal.errors import BadSample, InputError, nearest

BUILT_IN = ("glyphs",)


class Source(Protocol):
    """Rows, each an image with its texts and a stable id. Several texts to an image are the rule.

    One whose rows are best read otherwise than all at random has an `order`, too; see `xmodal.data.orders`. One that is
    read through clients with threads of their own is `remote`; see `xmodal.data.workers`.
    """

    name: str
    photographs: bool  # as opposed to drawings and signs, in which a flip changes the meaning
    image_id: np.ndarray  # (n,) int64, equal for equal images
    dropped: Mapping[str, int]  # how much of the data is no row, by what it lacks, such as "no caption"

    def __len__(self) -> int: ...

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        """The pictures of rows (b,), decoded; one that can't be read comes back as the reason why.

        decoders: for each row what reads its file, instead of `decode`; those without files leave it alone.
        """
        ...

    def texts(self, row: int) -> Sequence[str]: ...

    def key(self, row: int) -> str:
        """What to call the row in a message, such as its path."""
        ...

    def fingerprint(self) -> str:
        """Changes when rows, texts or images do; a run resumes on the data it began with only."""
        ...


@dataclass(frozen=True)
class Columns:
    """The columns of a table, where they have no usual name."""

    image: str | None = None
    caption: str | None = None
    split: str | None = None


def open_source(
    spec: str, split: str | None = None, columns: Columns | None = None, weights: Sequence[float] = ()
) -> Source:
    """A data spec: a built-in name, with /TEST for its tests, a file or folder of a form in `xmodal.data.forms`, tar
    shards here or at an address, parquet at one, a dataset; or several with :: between.

    split: the rows of that split; None takes all.
    weights: for each of several, of how many times its rows an epoch has; if not given, they all have 1.
    Raises InputError for a spec that names nothing.
    """
    if _is_mixture(spec, weights):
        return _open_mixture(spec, split, columns, weights)
    name, _, test = spec.partition("/")
    if name == "glyphs" and not os.path.exists(spec):
        from xmodal.data.glyphs import TESTS, Glyphs

        if test and test not in TESTS:
            raise InputError(f"glyphs has no test {test!r}; {nearest(test, TESTS)}")
        return Glyphs(test or "train")
    if is_tables(spec):
        from xmodal.data.streamed_pictures import open_streamed_pairs

        return open_streamed_pairs(spec, split, columns or Columns())
    if is_shards(spec):
        from xmodal.data.shards import Shards

        return Shards(f"{spec}:{split}" if split else spec, shard_names(spec, split), columns or Columns())
    if is_dataset(spec):
        from xmodal.data.hf_pictures import open_hf_pictures

        return open_hf_pictures(spec, split, columns or Columns())
    if not _there(spec):
        raise InputError(_not_found(spec))
    from xmodal.data.table import read_table

    return read_table(Path(spec), split, columns or Columns())


def _is_mixture(spec: str, weights: Sequence[float] = ()) -> bool:
    """Whether it is of several sources; tar shards without weights are one."""
    parts = spec.split("::")
    return bool(weights) or (len(parts) > 1 and (any(map(is_tables, parts)) or not is_shards(spec)))


def _open_mixture(spec: str, split: str | None, columns: Columns | None, weights: Sequence[float]) -> Source:
    """Of parts without splits all rows are of split train."""
    from xmodal.data.mixture import Mixture

    parts = spec.split("::")
    if weights and len(weights) != len(parts):
        raise InputError(f"--weights has {len(weights)} numbers, and there are {len(parts)} sources in {spec}.")
    inside = [splits(part, columns) for part in parts]
    taken = [i for i, found in enumerate(inside) if split is None or split in (found or ["train"])]
    if not taken:
        there = sorted({one for found in inside for one in found or ["train"]})
        raise InputError(f"{spec} has no rows of split {split!r}; it has {', '.join(there)}.")
    opened = [(parts[i], open_source(parts[i], split if inside[i] else None, columns)) for i in taken]
    chosen = [weights[i] for i in taken] if weights else [1.0] * len(opened)
    for (part, source), weight in zip(opened, chosen, strict=True):
        if not round(weight * len(source)):
            raise InputError(f"--weights {weight:g} leaves an epoch none of the {len(source):,} rows of {part}.")
    return Mixture(f"{spec}:{split}" if split else spec, opened, chosen)


def open_pairs(
    spec: str, val: str | None, columns: Columns | None = None, weights: Sequence[float] = ()
) -> tuple[Source, dict[str, Source]]:
    """What to train on and what to evaluate on, by name.

    Built-in data has its tests. Other data is evaluated on `val` (another spec); or its own rows of split val, or else
    test, are, and those of split train are trained on; or nothing is. weights: of several sources to train on.
    """
    if spec == "glyphs" and val is None and not weights:
        from xmodal.data.glyphs import TESTS

        return open_source(spec), {name: open_source(f"glyphs/{name}") for name in TESTS}
    found = splits(spec, columns)
    train = open_source(spec, "train" if "train" in found else None, columns, weights)
    if val is not None:
        inside = splits(val, columns)
        return train, {"val": open_source(val, next((s for s in ("val", "test") if s in inside), None), columns)}
    split = next((s for s in ("val", "test") if s in found and "train" in found), None)
    return train, {split: open_source(spec, split, columns)} if split else {}


def splits(spec: str, columns: Columns | None = None) -> list[str]:
    """The splits that data has; none where its rows don't say."""
    if _is_mixture(spec):
        inside = [splits(part, columns) for part in spec.split("::")]
        return list(dict.fromkeys(split for found in inside for split in found or ["train"])) if any(inside) else []
    if is_tables(spec):
        return table_splits(spec)
    if is_shards(spec):
        return shard_splits(spec)
    if is_dataset(spec):
        from xmodal.data.hf_pictures import splits_by_name

        return list(splits_by_name(spec))
    if not _there(spec):
        return []
    from xmodal.data.table import splits as of_table

    return list(of_table(Path(spec), columns or Columns()))


def held_out_split(spec: str, columns: Columns | None = None) -> str | None:
    """The split that is there to be evaluated on: test, else val, else none."""
    found = splits(spec, columns)
    return next((split for split in ("test", "val") if split in found), None)


def form_of(spec: str, columns: Columns | None = None) -> str:
    """What the form of a data spec is called. Raises InputError as `open_source` does."""
    if spec.partition("/")[0] in BUILT_IN and not os.path.exists(spec):
        return "built in"
    if _is_mixture(spec):
        return " and ".join(form_of(part, columns) for part in spec.split("::"))
    if is_tables(spec):
        n = len(table_files(spec)[0])
        return f"parquet at an address, {n:,} files" if n > 1 else "one parquet file at an address"
    if is_shards(spec):
        n = len(shard_names(spec))
        return f"tar shards, {n:,} of them" if n > 1 else "one tar shard"
    if is_dataset(spec):
        return "parquet or arrow file" if os.path.isfile(spec) else "Hugging Face dataset"
    if not _there(spec):
        raise InputError(_not_found(spec))
    from xmodal.data import forms

    return forms.form_of(Path(spec), columns or Columns())


def captions(source: Source) -> Iterator[str]:
    """Every text of a source, row by row."""
    for row in range(len(source)):
        yield from source.texts(row)


def _there(spec: str) -> bool:
    """Whether it is a file or a folder: no pipe, no name that is too long or has a NUL, where Path raises."""
    return os.path.isfile(spec) or os.path.isdir(spec)


def _not_found(spec: str) -> str:
    path = Path(spec)
    around = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    names = [*BUILT_IN, *around] if path.parent == Path() else around
    hint = nearest(path.name, names) if names else f"the folder {path.parent} does not exist"
    return f"No data {spec!r}: no file of this name, and no built-in set ({', '.join(BUILT_IN)})." + (
        f" {hint[0].upper()}{hint[1:]}" if hint.startswith(("did", "the")) else ""
    )
