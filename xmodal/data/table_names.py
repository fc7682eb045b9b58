"""Which parquet files far away a spec names, and which splits they have.

| spec | what is read |
|---|---|
| `https://HOST/part-{0000..0041}.parquet`, `s3://BUCKET/*.parquet` | these files |
| `s3://BUCKET/FOLDER`, `hf://datasets/ORG/NAME/FOLDER` | the parquet files in it, or in its folder `data` |
| `hf://datasets/ORG/NAME[@REVISION][,CONFIGURATION]` | a dataset of the hub |
| `hf-dataset:ORG/NAME[@REVISION][,CONFIGURATION],streaming` | the same |

Files whose names all say so, such as train-00000-of-00005.parquet and validation/0000.parquet, have splits.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from xmodal.data.delimited import SPLITS
from xmodal.data.hf_datasets import PREFIX
from xmodal.data.hub_tables import Files, hub_dataset, hub_files, pinned
from xmodal.data.remote_files import is_remote, matching, names_in
from xmodal.data.shard_names import ENDS, expand
from xmodal.errors import InputError, nearest

ENDING = ".parquet"
WHOLE = ""  # in place of a split, where there are none
WORD = re.compile(rf"(?<![a-z])(train|val|test|{'|'.join(SPLITS)})(?![a-z])")


def is_tables(spec: str) -> bool:
    """Whether a spec names parquet files far away. Raises InputError for a dataset that lies here."""
    if "::" in spec:
        return False
    if hub_dataset(spec):
        return True
    return not spec.startswith(PREFIX) and is_remote(spec) and (_is_parquet(spec) or bool(_inside(spec)))


def table_splits(spec: str) -> list[str]:
    """The splits that there are, by their names here; none where files don't say."""
    return [split for split in _found(spec).splits if split != WHOLE]


def table_files(spec: str, split: str | None = None) -> tuple[list[str], Any]:
    """The addresses of a split's files, and what the hub says of their columns, or None.

    Without a split those of all; of a dataset of the hub, as when it is downloaded, those of train, or of the first.
    Raises InputError for an unknown split, and where there are no files.
    """
    found = _found(spec)
    there = [one for one in found.splits if one != WHOLE]
    if split is None and hub_dataset(spec):
        split = next((one for one in ("train", *there) if one in there), None)
    if split is None:
        return [address for addresses in found.splits.values() for address in addresses], found.features
    if split not in there:
        raise InputError(f"{spec} has no split {split!r}; " + (nearest(split, there) if there else "it has none."))
    return found.splits[split], found.features


@lru_cache(maxsize=16)
def _found(spec: str) -> Files:
    """Looked up once for a process: a dataset that grows meanwhile is the one that it was."""
    if (dataset := hub_dataset(spec)) is not None:
        found = hub_files(dataset)
        return found._replace(splits={SPLITS.get(split, split): addresses for split, addresses in found.splits.items()})
    part = pinned(spec)
    addresses = _inside(part) or [one for name in expand(part) for one in (matching(name) if "*" in name else [name])]
    if other := next((one for one in addresses if not _is_parquet(one)), None):
        raise InputError(f"{other} is no parquet file.")
    if not addresses:
        raise InputError(f"{spec} has no parquet files in it.")
    splits: dict[str, list[str]] = {}
    for address in addresses:
        splits.setdefault(_split_in(address), []).append(address)
    return Files(splits if WHOLE not in splits else {WHOLE: addresses})


def _split_in(address: str) -> str:
    """The split that the name of a file says, or else that of its folder."""
    folder, _, name = address.lower().partition("?")[0].rpartition("/")
    for told in (name, folder.rpartition("/")[2]):
        if match := WORD.search(told):
            return SPLITS.get(match[0], match[0])
    return WHOLE


def _is_parquet(address: str) -> bool:
    return address.partition("?")[0].lower().endswith(ENDING)


def _inside(folder: str) -> list[str]:
    """The parquet files in a folder, or in its folder `data`; none where it is no folder."""
    if folder.lower().endswith(ENDS) or _is_parquet(folder) or "{" in folder or "*" in folder:
        return []
    names = names_in(folder)
    if data := [name for name in names if name.rpartition("/")[2] == "data"]:
        names += names_in(data[0])
    return [name for name in names if _is_parquet(name)]
