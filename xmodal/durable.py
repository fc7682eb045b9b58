"""Files that are there whole or not at all, whenever the power goes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    sync(beside)
    beside.replace(path)


def sync(path: Path) -> None:
    """Ask the file system to hold a file, or the entries of a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """The hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
