"""Tar shards as webdataset and img2dataset write them, read by offset from the file as it lies.

Nothing is extracted and nothing but pictures, text and JSON is read: a member's name is a key, never a path, and
pickles, links and devices are counted and left alone. Any row is one read away, so the order of samples is the global
one, as for files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from xmodal.data.decode import MOST_BYTES, SUFFIXES, decode_each, mostly_photographs
from xmodal.data.forms import strings
from xmodal.data.forms.csv_table import CAPTION_NAMES
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

TEXTS = ("txt", "text", "caption", "json")  # in the order in which they are looked for
MOST_TEXT_BYTES = 1_000_000
MOST_OPEN = 64  # shards, in each process
PLACE = np.dtype([("shard", "i4"), ("kind", "i1"), ("image", "i8", 2), ("text", "i8", 2)])  # offset and size


class _Member(NamedTuple):
    offset: int
    size: int


@dataclass
class _Found:
    """What one shard holds: rows with their keys, what was left out, and a hash of members."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    digest: bytes = b""


class Shards:
    """A source over local shards. Each line of a .txt is a caption; of a .json, what a key such as caption holds."""

    def __init__(self, name: str, paths: Sequence[Path], columns: Columns) -> None:
        import pyarrow as pa

        self.name, self.paths, self._caption = name, list(paths), columns.caption
        self._open: dict[int, Any] = {}
        dropped: Counter[str] = Counter()
        places, keys, digests = [], [], hashlib.sha256()
        for shard in range(len(self.paths)):
            found = self._scan(shard)
            places.append(np.array(found.rows, dtype=PLACE))
            keys += found.keys
            dropped += found.dropped
            digests.update(found.digest)
        self._places = np.concatenate(places)
        self._keys = pa.array(keys, pa.large_string())
        self._digest = digests.hexdigest()
        self.dropped: Mapping[str, int] = dropped
        self.image_id = np.array([stable_id(self.key(row)) for row in range(len(self))], dtype=np.int64)
        self.photographs = mostly_photographs(self.file(row) for row in range(min(64, len(self))))

    def __len__(self) -> int:
        return len(self._places)

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(self.file(row) for row in rows.tolist())

    def texts(self, row: int) -> Sequence[str]:
        place = self._places[row]
        return self._told(int(place["shard"]), TEXTS[place["kind"]], *place["text"].tolist())

    def key(self, row: int) -> str:
        """The shard and the sample's key in it."""
        return f"{self.paths[self._places[row]['shard']].name}:{self._keys[int(row)].as_py()}"

    def fingerprint(self) -> str:
        """Over keys, captions, and the sizes of pictures."""
        return self._digest

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process opens its own files

    def _scan(self, shard: int) -> _Found:
        """Raises InputError for a file that is no tar, and for a shard without a pair."""
        path, found = self.paths[shard], _Found()
        samples: dict[str, dict[str, _Member]] = {}
        suffixes: Counter[str] = Counter()
        for name, member in _members(path, found.dropped):
            key, suffix = _split(name)
            suffixes[suffix] += 1
            samples.setdefault(key, {})[suffix] = member
        digest = hashlib.sha256()
        for key, members in samples.items():
            image = next((m for s, m in members.items() if f".{s}" in SUFFIXES), None)
            kinds = [kind for kind in TEXTS if kind in members and (self._caption is None or kind == "json")]
            if image is None:
                found.dropped["no image"] += bool(kinds)
                continue
            for kind in kinds:
                text = members[kind]
                if told := self._told(shard, kind, text.offset, text.size):
                    row = (shard, TEXTS.index(kind), image, text)
                    found.rows.append(row)
                    found.keys.append(key)
                    digest.update(repr((key, told, image.size)).encode(errors="surrogatepass"))
                    break
            else:
                found.dropped["no caption"] += 1
        if not found.rows:
            ends = ", ".join(f".{suffix}" for suffix, _ in suffixes.most_common(5)) or "nothing"
            raise InputError(
                f"{path} has no picture with a caption: its members end in {ends}; "
                f"expected {', '.join(SUFFIXES[:4])}, … beside {', '.join(f'.{kind}' for kind in TEXTS)} of one name."
            )
        found.digest = digest.digest()
        return found

    def _told(self, shard: int, kind: str, offset: int, size: int) -> list[str]:
        if size > MOST_TEXT_BYTES:
            return []
        text = self._read(shard, offset, size).decode("utf-8-sig", errors="replace").replace("\0", "\ufffd")
        if kind != "json":
            return list(dict.fromkeys(strings(text.splitlines())))
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return []
        names = (self._caption,) if self._caption else CAPTION_NAMES
        cells = [record.get(name) for name in names] if isinstance(record, dict) else []
        return next((told for cell in cells if (told := list(dict.fromkeys(strings(cell))))), [])

    def file(self, row: int) -> bytes:
        """The picture as it is stored."""
        place = self._places[row]
        offset, size = place["image"].tolist()
        # A byte more than decoding takes, so that it says what is wrong.
        return self._read(int(place["shard"]), offset, min(size, MOST_BYTES + 1))

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = self.paths[shard].open("rb", buffering=0)
        return os.pread(self._open[shard].fileno(), size, offset)


def _members(path: Path, dropped: Counter[str]) -> Iterator[tuple[str, _Member]]:
    """Regular members with their places. What ends early is cut off there, and counted."""
    whole = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := _next(tar, path, dropped)) is not None:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    dropped["links and devices"] += 1
                elif info.offset_data + info.size > whole:
                    dropped["end missing from a shard"] += 1
                    return
                else:
                    yield info.name, _Member(info.offset_data, info.size)
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # or it grows with the file
    except tarfile.TarError as error:
        raise InputError(f"{path} is no tar file: {error}") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None


def _next(tar: tarfile.TarFile, path: Path, dropped: Counter[str]) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, EOFError, OverflowError):  # tarfile's own when a header's bytes are wrong
        dropped["end missing from a shard"] += 1
        return None


def _split(name: str) -> tuple[str, str]:
    """A member's name as webdataset takes it apart: the sample's key, and what follows the first dot after it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()
