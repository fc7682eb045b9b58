"""JSON: COCO's captions, Karpathy's splits, a map from picture to captions, or records with a table's columns.

| found | form |
|---|---|
| {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} | COCO captions |
| {"images": [{"filename", "split", "sentences": [{"raw"}]}]} | Karpathy splits (Flickr8k, Flickr30k, COCO) |
| {"a.jpg": "…"} or {"a.jpg": ["…", …]} | captions.json |
| [{"image": …, "caption": …}, …], or such an object a line | records |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xmodal.data.delimited import image_column, open_text, split_column
from xmodal.data.forms import Listing, Row, strings
from xmodal.data.forms.csv_table import caption_columns, split_of
from xmodal.data.source import Columns
from xmodal.errors import InputError

# Karpathy's restval is what COCO's validation set has left over; his recipe trains on it.
KARPATHY = {"restval": "train"}
# Where people put the pictures that a JSON names, beside it.
USUAL = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")


@contextmanager
def read(path: Path, columns: Columns) -> Iterator[Listing]:
    """Raises InputError for JSON of none of the forms."""
    told = _lines(path) if path.suffix.lower() != ".json" else _parsed(path)
    roots = (path.parent, *(path.parent / name for name in USUAL))
    if isinstance(told, dict) and isinstance(images := told.get("images"), list):
        if isinstance(notes := told.get("annotations"), list):
            yield Listing("COCO captions", _coco_roots(path), _coco(path, images, notes), False)
        else:
            yield Listing("Karpathy splits", roots, _karpathy(path, images), True)
        return
    if isinstance(told, dict) and told and all(isinstance(v, str | list) for v in told.values()):
        yield Listing("captions.json", roots, (Row(name, strings(v)) for name, v in told.items()), False)
        return
    if isinstance(told, list) and told and all(isinstance(one, dict) for one in told):
        header = list(dict.fromkeys(name for one in told for name in one))
        image, part = image_column(path, header, columns.image), split_column(path, header, columns.split)
        texts = caption_columns(path, header, columns.caption)
        yield Listing("records", roots, _records(told, header, image, texts, part), part is not None)
        return
    raise InputError(
        f'{path} is JSON of no known form: expected records such as [{{"image": …, "caption": …}}], a map such as '
        '{"a.jpg": ["a caption"]}, COCO captions or Karpathy splits.'
    )


def _coco(path: Path, images: list[Any], notes: list[Any]) -> Iterator[Row]:
    texts: dict[str, list[str]] = {}
    for note in _objects(notes):
        texts.setdefault(str(note.get("image_id")), []).extend(strings(note.get("caption", "")))
    if not any(texts.values()):
        raise InputError(
            f"{path} has annotations, but no captions among them (COCO's instances and keypoints have none)."
        )
    for image in _objects(images):
        yield Row(_text(image, "file_name"), texts.get(str(image.get("id")), []))


def _karpathy(path: Path, images: list[Any]) -> Iterator[Row]:
    if not any(image.get("sentences") for image in _objects(images)):
        raise InputError(f"{path} has images, but neither annotations (COCO) nor sentences (Karpathy) with captions.")
    for image in _objects(images):
        folder, name = _text(image, "filepath"), _text(image, "filename")
        texts = [text for one in _objects(image.get("sentences")) for text in strings(_text(one, "raw"))]
        split = _text(image, "split")
        yield Row(f"{folder}/{name}" if folder else name, texts, KARPATHY.get(split) or split_of(split))


def _records(told: list[dict], header: list[str], image: int, texts: list[int], part: int | None) -> Iterator[Row]:
    for one in told:
        found = [text for i in texts for text in strings(one.get(header[i], ""))]
        yield Row(_text(one, header[image]), found, split_of(_text(one, header[part])) if part is not None else "")


def _coco_roots(path: Path) -> tuple[Path, ...]:
    """captions_val2017.json lies in annotations/, its pictures in val2017/ beside that."""
    part = re.sub(r"^captions_", "", path.stem)
    around = (path.parent, path.parent.parent)
    return tuple(folder / name for name in (part, "images", f"images/{part}", "") for folder in around)


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; what else is in it, or is no list, is nothing."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name, "")
    return value.encode(errors="replace").decode().strip() if isinstance(value, str) else ""


def _parsed(path: Path) -> Any:
    with open_text(path, "replace") as stream:
        try:
            return json.load(stream)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON: {error}") from None


def _lines(path: Path) -> list[Any]:
    found = []
    with open_text(path, "replace") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    found.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number} is no JSON: {error}") from None
    return found
