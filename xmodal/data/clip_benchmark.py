"""CLIP_benchmark's webdataset sets as they are: pictures with the number of a class each, or with captions.

| in the folder | is |
|---|---|
| test/0.tar, 1.tar, … | s0000000.webp (png, jpg, jpeg), and s0000000.cls, a number, or s0000000.txt, a caption a line |
| test/nshards.txt | how many of them there are |
| classnames.txt | a name a line, in the order of the numbers |
| zeroshot_classification_templates.txt | prompts, with {c} for the name |
| dataset_type.txt | "retrieval" where there are captions |

Captions are every line that there is, as CLIP_benchmark takes them; `shards` reads unique ones of the same sets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.data.decode import MOST_BYTES, Decoder, decode_each
from xmodal.data.lines import read_lines, read_templates
from xmodal.data.shard_index import MOST_TEXT_BYTES, key_and_suffix, members
from xmodal.data.shard_names import shard_names, shard_splits
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

PICTURES = ("webp", "png", "jpg", "jpeg")  # in the order in which CLIP_benchmark looks for a sample's
NAMES, TEMPLATES, TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
COUNT = "nshards.txt"


@dataclass
class Sample:
    """places: offset and size of its pictures, by their kind; told: what lies beside it."""

    shard: str
    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    told: bytes | None = None

    @property
    def picture(self) -> bytes:
        """As it is stored, or of one too large a byte more than decoding takes, so that it says so."""
        offset, size = next(self.places[kind] for kind in PICTURES if kind in self.places)
        with open(self.shard, "rb") as file:
            file.seek(offset)
            return file.read(min(size, MOST_BYTES + 1))


class Samples:
    """The pictures of a split. dropped: how many samples lack a picture or what should lie beside it."""

    def __init__(self, name: str, samples: Sequence[Sample], dropped: Counter[str]) -> None:
        self.name, self.samples, self.dropped = name, samples, dropped
        self.image_id = np.array([stable_id(f"{one.shard}:{one.key}") for one in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each((self.samples[row].picture for row in rows.tolist()), decoders)

    def key(self, row: int) -> str:
        return f"{os.path.basename(self.samples[row].shard)}:{self.samples[row].key}"


class Classified(Samples):
    """labels: (n,) int64, numbers of `classes`; templates: prompts with {} for the class, None where there are none."""

    def __init__(self, samples: Samples, classes: list[str], templates: list[str] | None) -> None:
        super().__init__(samples.name, samples.samples, samples.dropped)
        self.classes, self.templates = classes, templates
        self.labels = np.array([_number(one, len(classes)) for one in self.samples], dtype=np.int64)


class Captioned(Samples):
    def texts(self, row: int) -> list[str]:
        """Every line, also those that are empty or there twice."""
        return (self.samples[row].told or b"").decode("utf-8", errors="replace").splitlines()


def is_set(folder: Path) -> bool:
    """Whether a folder has shards by split, and one of the files that tell such a set."""
    splits = shard_splits(str(folder)) if os.path.isdir(folder) else []
    beside = [folder / file for file in (NAMES, TEMPLATES, TYPE)]
    counts = (Path(shard_names(str(folder), split)[0]).parent / COUNT for split in splits)
    return bool(splits) and any(file.is_file() for file in (*beside, *counts))


def kind_of(folder: Path) -> str:
    """classification or retrieval. Raises InputError for another kind, such as multilabel."""
    lines = read_lines(folder / TYPE) if (folder / TYPE).is_file() else []
    kind = lines[0].lower() if lines else "classification"
    if kind not in ("classification", "retrieval"):
        raise InputError(f"{folder} is of type {kind!r}; its sets of type classification and retrieval are read.")
    return kind


def read_classified(folder: Path, split: str | None) -> Classified:
    """A split of a set with classes; if none is given, test, else val, else train.

    Raises InputError for a set of captions, without class names, and for a class that has no name.
    """
    if kind_of(folder) == "retrieval":
        raise InputError(f"{folder} has captions and no classes: xmodal eval retrieval … --data {folder}")
    if not (folder / NAMES).is_file():
        raise InputError(f"{folder} has no {NAMES}, a line for each number of a class: what they are called.")
    templates = read_templates(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else None
    return Classified(_read(folder, split, "cls"), read_lines(folder / NAMES, keep_empty=True), templates)


def read_captioned(folder: Path, split: str | None) -> Captioned:
    """A split of a set with captions, as `read_classified`. Raises InputError for a set of classes."""
    if kind_of(folder) != "retrieval":
        raise InputError(f"{folder} has classes and no captions: xmodal eval zeroshot … --data {folder}")
    found = _read(folder, split, "txt")
    return Captioned(found.name, found.samples, found.dropped)


def _read(folder: Path, split: str | None, beside: str) -> Samples:
    there = shard_splits(str(folder))
    split = split or next(one for one in ("test", "val", "train", *there) if one in there)
    dropped: Counter[str] = Counter()
    found = [one for shard in _shards(folder, split) for one in _samples(shard, beside, dropped)]
    dropped["no image"] = sum(not one.places for one in found)
    dropped[f"no .{beside}"] = sum(one.told is None for one in found if one.places)
    samples = [one for one in found if one.places and one.told is not None]
    if not samples:
        raise InputError(f"{folder}, split {split}, has no picture ({', '.join(PICTURES)}) with a .{beside} beside it.")
    return Samples(f"{folder}:{split}", samples, +dropped)


def _shards(folder: Path, split: str) -> list[str]:
    """In the order of their numbers, as many as nshards.txt says."""
    names = shard_names(str(folder), split)
    where = Path(names[0]).parent
    if not (where / COUNT).is_file():
        return sorted(names, key=lambda name: (len(name), name))
    told = "".join(read_lines(where / COUNT))
    if not told.isdecimal():
        raise InputError(f"{where / COUNT} must hold a number, not {told[:40]!r}.")
    numbered = [str(where / f"{number}.tar") for number in range(int(told))]
    if missing := next((name for name in numbered if not os.path.isfile(name)), None):
        raise InputError(f"{where / COUNT} says {told} shards, and {missing} is not there.")
    return numbered


def _samples(shard: str, beside: str, dropped: Counter[str]) -> list[Sample]:
    """By their keys, in the order in which they begin."""
    samples: dict[str, Sample] = {}
    try:
        with open(shard, "rb") as file:
            for member in members(file, shard, os.path.getsize(shard), dropped):
                key, suffix = key_and_suffix(member.name)
                if suffix in PICTURES or suffix == beside:
                    sample = samples.setdefault(key, Sample(shard, key))
                    if suffix in PICTURES:
                        sample.places.setdefault(suffix, (member.offset_data, member.size))
                    elif member.size <= MOST_TEXT_BYTES:
                        file.seek(member.offset_data)
                        sample.told = file.read(member.size)
    except OSError as error:
        raise InputError(f"{shard} can't be read: {error.strerror}.") from None
    return list(samples.values())


def _number(sample: Sample, classes: int) -> int:
    told = (sample.told or b"").decode("ascii", errors="replace").strip()
    if not told.isdecimal() or int(told) >= classes:
        raise InputError(
            f"{sample.key}.cls of {sample.shard} says {told[:40]!r}; expected 0 to {classes - 1}, the lines of {NAMES}."
        )
    return int(told)
