"""Write data of any form as tar shards with pictures shrunk to what training needs, read fast here and far away.

    xmodal data pack captions.csv packed
    xmodal data pack "s3://bucket/{00000..00099}.tar" packed --size 384 --workers 8

The shards are webdataset's: 000000012.jpg with 000000012.txt, or .json with "captions" where there are several. Rows,
captions, ids and splits (folders train, val, test) stay what they were.

Pictures are shrunk, never enlarged, until their short side is --size. JPEG, PNG and WebP that are small enough already
are copied as they are; the others become JPEG of quality 95, or PNG where they have at most 256 colours or
transparency, which is put on white. What can't be read is left out and listed in OUTPUT/skipped.jsonl.

The same data gives the same bytes. Beside each shard lies NAME.tar.index, which saves the pass over its headers.
Started again after a kill it goes on with the shard that it was at.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from xmodal.cli import guard
from xmodal.config import parse, require
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    from xmodal.data.source import Columns, Source

TOGETHER = 32  # pictures that a worker shrinks at a time
SPLITS = ("train", "val", "test")
SETTINGS = "pack.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    data: tyro.conf.Positional[str]
    """A table, a JSON, a folder, parquet, tar shards, an address of these or hf-dataset:NAME."""
    output: tyro.conf.Positional[Path]
    """The folder to write; empty, or one that the same command has begun."""
    size: int = 256
    """Pixels of a picture's short side: more than the tower's (224), so that crops are no blow-ups."""
    shard_size: int = 10_000
    """Pictures in a shard."""
    workers: int | None = None
    """Processes that shrink; if not given, one for each core. The bytes don't depend on it."""
    image_column: str | None = None
    """The column of images, if it has no usual name."""
    caption_column: str | None = None
    """The column or JSON key of captions, if it has no usual name."""
    split_column: str | None = None
    """The column of splits, if it has no usual name."""

    def check(self) -> None:
        require(self, "size", lambda v: v >= 16, "at least 16")
        require(self, "shard_size", lambda v: v >= 1, "at least 1")
        require(self, "workers", lambda v: v >= 0, "0 or more")


class Lot(NamedTuple):
    """Rows first … stop − 1, all of one shard."""

    shard: int
    first: int
    stop: int


class Packed(NamedTuple):
    """What becomes of a row: members by their suffix; none, and the reason, where it can't be read."""

    row: int
    members: dict[str, bytes]
    reason: str = ""


class Shrunk:
    """Number of a lot -> what becomes of its rows."""

    def __init__(self, source: Source, lots: Sequence[Lot], size: int) -> None:
        import numpy as np

        self.source, self.lots, self.size = source, lots, size
        ids, counts = np.unique(source.image_id, return_counts=True)
        self.shared = set(ids[counts > 1].tolist())  # ids of several rows, which are written down

    def __len__(self) -> int:
        return len(self.lots)

    def __getitem__(self, number: int) -> list[Packed]:
        return list(self._packed(self.lots[number]))

    def _packed(self, lot: Lot) -> Iterator[Packed]:
        import numpy as np

        from xmodal.data.shard_index import MOST_TEXT_BYTES
        from xmodal.data.shrink import shrunk

        rows = np.arange(lot.first, lot.stop)
        found: list[Any] = self.source.images(rows, [partial(shrunk, size=self.size)] * len(rows))
        for row, picture in zip(rows.tolist(), found, strict=True):
            if isinstance(picture, BadSample):
                yield Packed(row, {}, picture.reason)
                continue
            # A source without files has drawn it.
            suffix, data = shrunk(picture, self.size) if isinstance(picture, np.ndarray) else picture
            kind, text = told(self.source.texts(row), self._id(row))
            if len(text) > MOST_TEXT_BYTES:
                yield Packed(row, {}, "too much text")
            else:
                yield Packed(row, {suffix: data, kind: text})

    def _id(self, row: int) -> int | None:
        own = int(self.source.image_id[row])
        return own if own in self.shared else None


def told(texts: Sequence[str], image_id: int | None) -> tuple[str, bytes]:
    """The kind of the member that holds captions, and its bytes: plain text where that says all."""
    if len(texts) == 1 and image_id is None and texts[0].splitlines() == [texts[0]]:
        text = texts[0].encode()
        if not texts[0].startswith("\ufeff") and b"\0" not in text:  # which a reader of text would change
            return "txt", text
    record: dict[str, Any] = {"captions": list(texts)}
    if image_id is not None:
        record["image_id"] = image_id
    return "json", json.dumps(record, ensure_ascii=False).encode()


def run(config: Config) -> dict[str, Any]:
    """Pack, print; returns how many pictures and shards there are now, and how many rows were left out."""
    from xmodal.data.source import Columns, open_source, splits
    from xmodal.durable import replace_text

    columns = Columns(config.image_column, config.caption_column, config.split_column)
    there = splits(config.data, columns)
    taken = [split for split in SPLITS if split in there]
    parts = {split: open_source(config.data, split, columns) for split in taken} if taken else {}
    parts = parts or {"": open_source(config.data, None, columns)}
    if taken and (rest := [split for split in there if split not in SPLITS]):
        told = (f"{_pictures(config.data, split, columns):,} of {split or 'no split'}" for split in rest)
        print(f"Left out of {config.data}, pictures of other splits: {', '.join(told)}.")
    _claim(config, parts)
    pictures, shards, skipped = 0, 0, []
    for split, source in parts.items():
        for lack, n in source.dropped.items():
            if n:
                print(f"Left out of {source.name}: {n:,} with {lack}.")
        for index in _pack(source, config.output / split, config):
            shards += 1
            pictures += sum(len(batch) for batch in index.batches)
            skipped += [{"split": split, **one} if split else one for one in index.more["skipped"]]
    _tried(config.output, lambda: replace_text(config.output / "skipped.jsonl", _lines(skipped)))
    reasons = Counter(one["reason"] for one in skipped)
    why = ": " + ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) if skipped else ""
    print(
        f"{pictures:,} pictures in {shards:,} shard{'s' if shards != 1 else ''}; {len(skipped):,} can't be read{why}."
    )
    print(f"Train on it: xmodal train clip --data {config.output}")
    return {"pictures": pictures, "shards": shards, "skipped": len(skipped)}


def _pictures(data: str, split: str, columns: Columns) -> int:
    """How many pictures with captions a split has."""
    from xmodal.data.source import open_source

    try:
        return len(open_source(data, split, columns))
    except InputError:  # which says that there is none
        return 0


def _claim(config: Config, parts: dict[str, Source]) -> None:
    """Raises InputError for a folder that holds something else."""
    from xmodal.durable import replace_text

    told = hashlib.sha256(repr([(split, source.fingerprint()) for split, source in parts.items()]).encode())
    now = {"data": told.hexdigest(), "size": config.size, "shard_size": config.shard_size}
    file = config.output / SETTINGS
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise InputError(f"{config.output} was packed with another {changed[0]}; name another folder.")
        return
    if os.path.exists(config.output) and (not config.output.is_dir() or any(config.output.iterdir())):
        raise InputError(f"{config.output} is not empty and stays as it is; name another folder.")
    _tried(config.output, lambda: config.output.mkdir(parents=True, exist_ok=True))
    _tried(config.output, lambda: replace_text(file, json.dumps(now, indent=1) + "\n"))


def _pack(source: Source, folder: Path, config: Config) -> Iterator[Any]:
    """The index of each shard, in their order; those that lie there already are not made again."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from xmodal.data.workers import start_method, start_worker

    _tried(folder, lambda: folder.mkdir(exist_ok=True))
    n, each = len(source), config.shard_size
    shards = range(-(-n // each))
    done = {shard: index for shard in shards if (index := _done(folder / f"{shard:05}.tar")) is not None}
    lots = [
        Lot(shard, first, min(first + TOGETHER, stop))
        for shard in shards
        if shard not in done
        for stop in [min(n, (shard + 1) * each)]
        for first in range(shard * each, stop, TOGETHER)
    ]
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    workers = min(workers, len(lots))
    reader: Iterable[list[Packed]] = DataLoader(
        Shrunk(source, lots, config.size),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
        multiprocessing_context=start_method(source, workers),
    )
    with tqdm(total=n, unit=" pictures", disable=None) as bar:
        made = groupby(zip(lots, reader, strict=True), key=lambda both: both[0].shard)
        for shard in shards:
            if shard in done:
                bar.update(min(each, n - shard * each))
                yield done[shard]
                continue
            rows = (row for _, found in next(made)[1] for row in found)
            yield _write(folder / f"{shard:05}.tar", rows, source, bar)


def _write(path: Path, rows: Iterable[Packed], source: Source, bar: Any) -> Any:
    """A shard, whole or not at all, and its index after it."""
    from xmodal.data.shard_index import BESIDE, Index, batch_of, scan
    from xmodal.durable import sync
    from xmodal.embedding.parts import plain

    beside, index_beside = path.with_name(path.name + ".tmp"), path.with_name(path.name + BESIDE + ".tmp")
    skipped: list[dict[str, Any]] = []
    written = 0

    def write() -> Index:
        nonlocal written
        with tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, members, reason in rows:
                bar.update()
                if reason:
                    skipped.append({"row": row, "key": plain(source.key(row)), "reason": reason})
                for suffix, data in members.items():
                    _add(tar, f"{row:09}.{suffix}", data)
                written += bool(members)
        size = beside.stat().st_size
        with beside.open("rb") as file:
            found = scan(file, str(path), size, None) if written else Index([batch_of([])], size, {}, "")
        found = Index(found.batches, found.size, found.dropped, found.digest, {"skipped": skipped})
        found.write(index_beside)
        for new, name in ((beside, path), (index_beside, path.with_name(path.name + BESIDE))):
            sync(new)
            new.replace(name)
        return found

    return _tried(path, write)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member that tells nothing of when, where and by whom it was written."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _done(path: Path) -> Any:
    """The index of a shard that is there, whole."""
    from xmodal.data.shard_index import BESIDE, read_index

    beside = path.with_name(path.name + BESIDE)
    if not path.is_file() or not beside.is_file():
        return None
    found = read_index(beside.read_bytes(), path.stat().st_size)
    return found if found is not None and "skipped" in found.more else None


def _lines(skipped: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in skipped)


def _tried(path: Path, action: Any) -> Any:
    try:
        return action()
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from None


def main(argv: Sequence[str] | None = None) -> int:
    run(parse(Config, argv, prog="xmodal data pack"))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
