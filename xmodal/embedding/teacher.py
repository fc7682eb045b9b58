"""A teacher's rows beside each batch: those that `xmodal embed --kind pairs` made of the same data.

They stay on disk and are read as they are needed, by whoever reads the batch. A picture's row is found by its row in
the data, which is the same data as long as its fingerprint is; a text's by its id.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from xmodal.data.batches import Batches
from xmodal.data.decode import Decoder
from xmodal.data.distinct import distinct_texts
from xmodal.data.orders import order_of
from xmodal.data.source import Source, captions
from xmodal.data.stand_ins import Skipped
from xmodal.embedding.index import Index, open_index
from xmodal.embedding.outputs import PAIRS
from xmodal.errors import BadSample, InputError

PLACES = ("model", "data", "root")  # where things were when the rows were made; they may move
NONE = -1  # where a row of the data has none of the teacher's


class Teacher:
    """Rows of images and texts as the teacher embeds them, and the scale of its logits.

    fingerprint: of what the rows were made of and by; image_row: (n,) which of its rows each row of the data has.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], source: Source) -> None:
        self.folder, self.source, self.scale = folder, source, float(about["scale"])
        images, texts = (open_index(folder / name) for name in ("images", "texts"))
        self.image_row = np.full(len(source), NONE)
        self.image_row[images.numbers.to_numpy()] = np.arange(len(images))
        self.text_id, first = distinct_texts(source)
        self._complete(images, texts)
        self.text_row = np.empty_like(first)
        self.text_row[first.argsort()] = np.arange(len(first))
        made = [{n: v for n, v in index.about.items() if n not in PLACES} for index in (images, texts)]
        self.fingerprint = hashlib.sha256(json.dumps([self.scale, *made]).encode()).hexdigest()
        self._open()

    def _complete(self, images: Index, texts: Index) -> None:
        missing = int((self.image_row == NONE).sum()) - images.about["skipped"]
        if missing or len(texts) != len(self.text_id):
            raise InputError(
                f"{self.folder} lacks rows: it has {len(images):,} pictures of {len(self.image_row):,}, "
                f"{images.about['skipped']:,} could not be read; and {len(texts):,} texts of {len(self.text_id):,}."
            )

    def _open(self) -> None:
        self.images, self.texts = (
            np.load(self.folder / name / "embeddings.npy", mmap_mode="r") for name in ("images", "texts")
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped rows: a process that is not forked opens the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("images", "texts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """teacher_image (b, e) and teacher_text (b, e) or (b, k, e) float32 of a batch; 0 where it has no text.

        Raises InputError for a picture that could not be read when the teacher was asked.
        """
        numbers = batch["row"].numpy()
        found = self.image_row[numbers]
        if (found == NONE).any():
            raise InputError(
                f"{self.source.key(int(numbers[found == NONE][0]))} can be read now, but could not be when "
                f"{self.folder} was made: make it again."
            )
        of_text = self.text_row[np.searchsorted(self.text_id, batch["text_id"].numpy()).clip(max=len(self.text_id) - 1)]
        text = torch.from_numpy(self.texts[of_text].astype(np.float32))
        if "text_there" in batch:
            text[~batch["text_there"]] = 0
        return {"teacher_image": torch.from_numpy(self.images[found].astype(np.float32)), "teacher_text": text}

    def of(self, source: Source) -> Taught:
        """The source, or what embeds it once, with this teacher's rows."""
        return Taught(source, self)

    def beside(self, batches: Batches) -> Lessons:
        """Batches of such a source with the rows in them."""
        return Lessons(batches, self)


def open_teacher(folder: Path, source: Source) -> Teacher:
    """The teacher's rows of a source. Raises InputError for a folder of something else, or of other data."""
    if not os.path.isfile(folder / PAIRS):
        raise InputError(
            f"{folder} holds no teacher's rows of pictures and texts; make them: "
            f"xmodal embed --model TEACHER --data … --kind pairs --output {folder}"
        )
    try:
        about = json.loads((folder / PAIRS).read_text(encoding="utf-8"))
        same, images, texts = about["fingerprint"] == source.fingerprint(), about["images"], about["texts"]
        if not same:
            distinct = len(set(captions(source)))
            raise InputError(
                f"{folder} was made of other data ({about['data']}): {about['rows']:,} pictures and "
                f"{texts['rows']:,} texts there, {len(source):,} and {distinct:,} in {source.name}"
                + ("." if (about["rows"], texts["rows"]) != (len(source), distinct) else ", but other ones.")
            )
        if images["width"] != texts["width"]:
            raise ValueError(f"pictures have {images['width']} numbers and texts {texts['width']}")
        return Teacher(folder, about, source)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder} is damaged: {error}") from None


class Taught:
    """A source whose rows come with a teacher's: another fingerprint, and all else as it is."""

    def __init__(self, source: Source, teacher: Teacher) -> None:
        self.source, self.teacher = source, teacher
        self.name, self.photographs, self.image_id = source.name, source.photographs, source.image_id
        self.dropped: Mapping[str, int] = source.dropped
        self.order, self.remote = order_of(source), getattr(source, "remote", False)

    def __len__(self) -> int:
        return len(self.source)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return self.source.images(rows, decoders)

    def texts(self, row: int) -> Sequence[str]:
        return self.source.texts(row)

    def key(self, row: int) -> str:
        return self.source.key(row)

    def fingerprint(self) -> str:
        """The data's, then the teacher's."""
        return f"{self.source.fingerprint()} {self.teacher.fingerprint}"


class Lessons(Dataset):
    """Batches with the teacher's rows in them."""

    def __init__(self, batches: Batches, teacher: Teacher) -> None:
        self.batches, self.teacher, self.source = batches, teacher, batches.source
        self.global_batch, self.steps_per_epoch = batches.global_batch, batches.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Skipped]]:
        batch, skipped = self.batches[step]
        return {**batch, **self.teacher.rows(batch)}, skipped
