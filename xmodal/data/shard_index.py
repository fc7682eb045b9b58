"""What a tar shard holds and where: found by one pass over its headers, or read from the index that lies beside it.

Nothing is extracted and nothing but pictures, text and JSON is looked at: a member's name is a key, never a path, and
pickles, links and devices are counted and left alone.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from xmodal.data.decode import SUFFIXES
from xmodal.data.forms import strings
from xmodal.data.forms.csv_table import CAPTION_NAMES
from xmodal.data.stable_id import stable_id
from xmodal.errors import InputError

BESIDE = ".index"  # 00000.tar.index
TEXTS = ("txt", "text", "caption", "json")  # in the order in which they are looked for
MOST_TEXT_BYTES = 1_000_000
VERSION = 1
# id: of the key, equal in shards that use it twice; where `named`, of the record's image_id, equal in all shards.
ROWS = pa.schema(
    [
        *(("key", pa.large_string()), ("texts", pa.large_list(pa.large_string()))),
        *(("id", pa.int64()), ("named", pa.bool_()), ("offset", pa.int64()), ("size", pa.int64())),
    ]
)


@dataclass(frozen=True)
class Index:
    """Rows of ROWS, one batch a shard, in the order of the shard; what was left out; a hash of keys, captions, sizes.

    size: bytes of the shard, of all shards together.
    """

    batches: Sequence[pa.RecordBatch]
    size: int
    dropped: Mapping[str, int]
    digest: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def write(self, sink: Path | IO[bytes], batches: Iterable[pa.RecordBatch] | None = None) -> None:
        """batches: instead of its own, one at a time, where not all are to be in memory."""
        about = {"version": VERSION, "bytes": self.size, "dropped": dict(self.dropped), "digest": self.digest}
        about = json.dumps({**about, **self.more}, ensure_ascii=True)
        schema = ROWS.with_metadata({"xmodal": about})
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in self.batches if batches is None else batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def read_index(source: bytes | Path, size: int | None = None) -> Index | None:
    """An index that was written; from a path its rows are mapped, not read. None for what is none.

    size: what the shard has now; with it nothing in the index is believed before it was looked at, and the index of
    another shard is none.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, Path) else pa.py_buffer(source))
        about = json.loads(reader.schema.metadata[b"xmodal"])
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        known, dropped, digest = about.pop("bytes"), about.pop("dropped"), about.pop("digest")
        if not reader.schema.equals(ROWS) or about.pop("version") != VERSION:
            return None
        if size is not None:
            for batch in batches:
                batch.validate(full=True)
                offset, length = (batch.column(name).to_numpy() for name in ("offset", "size"))
                if known != size or batch.column("key").null_count or (offset < 0).any() or (length < 0).any():
                    return None
                if (offset > size).any() or (length > size - offset).any():
                    return None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    return Index(batches, known, dropped, digest, about)


def joined(indexes: Sequence[Index]) -> Index:
    """The index of several shards."""
    dropped = sum((Counter(index.dropped) for index in indexes), Counter[str]())
    digest = hashlib.sha256("".join(index.digest for index in indexes).encode()).hexdigest()
    batches = [batch for index in indexes for batch in index.batches]
    return Index(batches, sum(index.size for index in indexes), dropped, digest)


@dataclass
class _Sample:
    image: tuple[int, int] | None = None  # offset and size
    told: dict[str, list[str]] = field(default_factory=dict)  # captions by the kind of the member
    name: str = ""  # the record's image_id


def scan(file: Any, name: str, size: int, caption: str | None) -> Index:
    """One pass over an open shard, from its beginning to its end.

    Each line of a .txt is a caption; of a .json, what a key such as caption holds, or `caption`. Its image_id says
    which rows have one picture. Raises InputError for a file that is no tar, and for a shard without a pair.
    """
    dropped, suffixes = Counter[str](), Counter[str]()
    samples: dict[str, _Sample] = {}
    for member in members(file, name, size, dropped):
        key, suffix = key_and_suffix(member.name)
        suffixes[suffix] += 1
        sample = samples.setdefault(key, _Sample())
        if f".{suffix}" in SUFFIXES:
            sample.image = sample.image or (member.offset_data, member.size)
        elif suffix == "json" or (suffix in TEXTS and caption is None):
            told = b""
            if member.size <= MOST_TEXT_BYTES:
                file.seek(member.offset_data)
                told = file.read(member.size)
            _take(sample, suffix, told.decode("utf-8-sig", errors="replace").replace("\0", "\ufffd"), caption)
    rows: list[tuple[Any, ...]] = []
    digest = hashlib.sha256()
    for key, sample in samples.items():
        if sample.image is None:
            dropped["no image"] += bool(sample.told)
            continue
        kind = next((kind for kind in TEXTS if sample.told.get(kind)), None)
        if kind is None:
            dropped["no caption"] += 1
            continue
        told, own = sample.told[kind], sample.name if kind == "json" else ""
        shown = key.encode(errors="backslashreplace").decode()
        rows.append((shown, told, stable_id(own or shown), bool(own), *sample.image))
        digest.update(repr((key, told, sample.image[1])).encode(errors="surrogatepass"))
    if not rows:
        ends = ", ".join(f".{suffix}" for suffix, _ in suffixes.most_common(5)) or "nothing"
        raise InputError(
            f"{name} has no picture with a caption: its members end in {ends}; "
            f"expected {', '.join(SUFFIXES[:4])}, … beside {', '.join(f'.{kind}' for kind in TEXTS)} of one name."
        )
    return Index([batch_of(rows)], size, dropped, digest.hexdigest())


def batch_of(rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    """Tuples with a value for each field of ROWS."""
    columns = zip(*rows, strict=True) if rows else [()] * len(ROWS)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(map(list, columns), ROWS, strict=True)], schema=ROWS)


def _take(sample: _Sample, kind: str, text: str, caption: str | None) -> None:
    if kind != "json":
        sample.told[kind] = list(dict.fromkeys(strings(text.splitlines())))
        return
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    record = record if isinstance(record, dict) else {}
    cells = [record.get(name) for name in ((caption,) if caption else CAPTION_NAMES)]
    sample.told[kind] = next((told for cell in cells if (told := list(dict.fromkeys(strings(cell))))), [])
    own = record.get("image_id")
    sample.name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) else ""


def members(file: Any, name: str, size: int, dropped: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """Regular members with their places. What ends early is cut off there, and counted."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := _next(tar, dropped)) is not None:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    dropped["links and devices"] += 1
                elif info.offset_data + info.size > size:
                    dropped["end missing from a shard"] += 1
                    return
                else:
                    yield info
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # or it grows with the file
    except tarfile.TarError as error:
        raise InputError(f"{name} is no tar file: {error}") from None


def _next(tar: tarfile.TarFile, dropped: Counter[str]) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, EOFError, OverflowError):  # tarfile's own when a header's bytes are wrong
        dropped["end missing from a shard"] += 1
        return None


def key_and_suffix(name: str) -> tuple[str, str]:
    """A member's name as webdataset takes it apart: the sample's key, and what follows the first dot after it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()
