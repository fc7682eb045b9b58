"""Which tar files a spec names: one, a folder of them, a pattern such as shards/{00000..01242}.tar, several with ::.

Each part may be an address, such as https://host/{00000..00099}.tar or s3://bucket/folder. A folder with a folder of
shards for each split, as `xmodal data pack` writes it, has these splits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from xmodal.data.delimited import SPLITS
from xmodal.data.remote_files import is_remote, matching, names_in
from xmodal.errors import InputError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
MOST = 1_000_000  # shards
ENDS = (".tar", ".tar.gz", ".tgz")
SPLIT_WORDS = ("train", "val", "test", *SPLITS)


def is_shards(spec: str) -> bool:
    """Whether a spec is one of tar shards, all of them local or none; a folder is if there are .tar files in it."""
    parts = spec.split("::")
    return len({is_remote(part) for part in parts}) == 1 and all(map(_is_shards, parts))


def shard_names(spec: str, split: str | None = None) -> list[str]:
    """The paths or addresses of the shards in their order, of one split or of all.

    Raises InputError for a shard that isn't there, for what no shard can be, and for an unknown split.
    """
    found: list[str] = []
    for part in spec.split("::"):
        folders = _folders_of_splits(part)
        if split is not None and split not in folders:
            raise InputError(f"{part} has no split {split!r}; it has {', '.join(folders) or 'none'}.")
        for one in [folders[split]] if split is not None else folders.values() or [part]:
            found += _names(one)
    if not found:
        raise InputError(f"{spec} has no .tar files in it.")
    return found


def shard_splits(spec: str) -> list[str]:
    """The splits that shards have by their folders; none for several parts, and where there are no such folders."""
    return list(_folders_of_splits(spec))


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern with {00000..00009} or {a,b} stands for, zeros kept."""
    match = RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    low, high, words = match.groups()
    if words is not None:
        each = words.split(",")
    elif int(high) - int(low) >= MOST:
        raise InputError(f"{pattern} names more than {MOST:,} shards.")
    else:
        each = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    for word in each:
        yield from expand(pattern[: match.start()] + word + pattern[match.end() :])


def _is_shards(part: str) -> bool:
    if part.lower().endswith(ENDS) or is_remote(part):
        return True
    return bool(_tars_in(part) or _folders_of_splits(part))


def _names(part: str) -> list[str]:
    if tars := _tars_in(part):
        return tars
    if not is_remote(part):
        names = [part] if os.path.isfile(part) else list(expand(part))
        return [_checked(name, part) for name in names]
    names = list(expand(part))
    names = [name for one in names for name in (matching(one) if "*" in one else [one])]
    for name in names:
        _uncompressed(name)
        if not name.lower().endswith(".tar"):
            raise InputError(
                f"{name} is no tar shard, and none were found in it; of what is at an address only those are read, "
                "such as https://HOST/{00000..00099}.tar or s3://BUCKET/FOLDER."
            )
    return names


def _tars_in(folder: str) -> list[str]:
    """The shards in a folder, sorted; none where it is no folder."""
    return [name for name in _inside(folder) if name.lower().endswith(".tar")]


def _folders_of_splits(folder: str) -> dict[str, str]:
    """Folders called train, val or test, or as others call these, with shards in them, by the split's name here."""
    if is_remote(folder):
        there = {name.rpartition("/")[2]: name for name in _inside(folder)}
    else:  # a folder of a million pictures isn't listed once more for this
        there = {word: os.path.join(folder, word) for word in SPLIT_WORDS}
    words = [word for word in SPLIT_WORDS if word in there]
    return {SPLITS.get(word, word): there[word] for word in words if _tars_in(there[word])}


def _inside(folder: str) -> list[str]:
    if folder.lower().endswith(ENDS) or "{" in folder or "*" in folder:
        return []
    if is_remote(folder):
        return names_in(folder)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def _checked(name: str, part: str) -> str:
    _uncompressed(name)
    if not os.path.isfile(name):  # False for a pipe, and for a name that is too long or has a NUL
        raise InputError(f"There is no shard {name!r}" + (f", which {part} names." if name != part else "."))
    return name


def _uncompressed(name: str) -> None:
    if name.lower().endswith((".gz", ".tgz")):
        raise InputError(f"{name} is compressed, so nothing in it can be found without reading all before: gunzip it.")
