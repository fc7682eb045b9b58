"""Which tar files a spec names: one, a folder of them, a pattern such as shards/{00000..01242}.tar, several with ::."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from xmodal.errors import InputError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
MOST = 1_000_000  # shards


def is_shards(spec: str) -> bool:
    """Whether a spec is one of tar shards; a folder is if there are .tar files in it."""
    if "::" in spec or spec.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return True
    return os.path.isdir(spec) and any(name.lower().endswith(".tar") for name in os.listdir(spec))


def shard_paths(spec: str) -> list[Path]:
    """The shards in their order. Raises InputError for one that isn't there and for what no shard can be."""
    found: list[Path] = []
    for part in spec.split("::"):
        if part.startswith("pipe:") or "://" in part:
            raise InputError(f"{part[:200]!r} is no local shard; nothing is run or fetched because of a name.")
        names = [part]
        if os.path.isdir(part):
            names = [os.path.join(part, name) for name in sorted(os.listdir(part)) if name.lower().endswith(".tar")]
        elif not os.path.isfile(part):
            names = list(expand(part))
        found += [_checked(name, part) for name in names]
    if not found:
        raise InputError(f"{spec} has no .tar files in it.")
    return found


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


def _checked(name: str, part: str) -> Path:
    if name.lower().endswith((".gz", ".tgz")):
        raise InputError(f"{name} is compressed, so nothing in it can be found without reading all before: gunzip it.")
    if not os.path.isfile(name):  # False for a pipe, and for a name that is too long or has a NUL
        raise InputError(f"There is no shard {name!r}" + (f", which {part} names." if name != part else "."))
    return Path(name)
