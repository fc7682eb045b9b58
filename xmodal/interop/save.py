"""A model in another library's form: written beside, opened there, compared, and only then put in its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from xmodal.encoders.lora import merged
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop.verify import TEXTS, Report, compare, pictures

Format = Literal["open_clip", "hf", "sentence-transformers", "onnx"]
FORMATS: tuple[str, ...] = get_args(Format)
_MODULES = {
    "open_clip": "open_clip",
    "hf": "transformers",
    "sentence-transformers": "sentence_transformers",
    "onnx": "onnx",
}


def save_as(towers: TwoTower, folder: str | Path, format: str) -> Report:
    """Write towers for another library, open them there and compare embeddings of fixed pictures and texts.

    Raises InputError where the library has no such architecture or the folder holds something, and ConversionFailed
    where an embedding differs by more than 1e-4. Either way nothing is left behind.
    """
    library, folder = module(format), Path(folder).absolute()
    refuse_taken(folder)
    _refuse_unknown(towers, format)
    towers = _copied(merged(towers)).cpu().float().eval()
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=_nearest(folder)))
    except OSError as error:
        raise InputError(f"Cannot write {folder}: {error.strerror}.") from None
    try:
        notes = library.write(towers, beside)
        shown = pictures(towers.preparation)
        ours = towers.encode_image(shown), towers.encode_text(TEXTS)
        report = compare(ours, library.embed(beside, shown, TEXTS), notes)
        beside.chmod(0o777 & ~_umask())  # mkdtemp's own are the owner's alone
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return report


def module(format: str) -> Any:
    """What writes and opens a format."""
    if format not in _MODULES:
        raise ValueError(f"format must be one of {', '.join(('xmodal', *FORMATS))}, not {format!r}")
    return import_module(f"xmodal.interop.{_MODULES[format]}")


def refuse_taken(folder: Path) -> None:
    """Raise InputError unless a folder can be written without touching anything."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds something already and stays as it is; name an empty or a new folder.")
    elif folder.exists():
        raise InputError(f"{folder} is a file; name a folder.")


def _refuse_unknown(towers: TwoTower, format: str) -> None:
    kind = towers.description["kind"]
    if format == "onnx" or kind in ("open_clip", "hf"):
        return
    what = {
        "small": "xmodal's own small towers exist nowhere else",
        "pair": "these are two single towers with heads of our own, which exist nowhere else",
    }.get(kind, f"towers of kind {kind!r} aren't known there")
    raise InputError(f"This model can't go to {format}: {what}. To run it without xmodal: --to onnx.")


def _copied(towers: TwoTower) -> TwoTower:
    """With weights of its own, for they are moved and put into evaluation mode; the tokenizer is not touched."""
    return deepcopy(towers, {id(towers.tokenizer): towers.tokenizer})


def _nearest(folder: Path) -> Path:
    """The folder, of those above, that is there: on the same disk, and nothing has to be made that may have to go."""
    return next(parent for parent in folder.parents if parent.is_dir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
