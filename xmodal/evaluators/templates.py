"""Prompt templates by name or from a file: lines with {} where the class's name goes."""

from __future__ import annotations

import os
from pathlib import Path

from xmodal.errors import InputError, nearest

# In our own words; as few as tell a picture of a thing from the thing's name.
SIMPLE = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "an image that shows {}.")
NAMES = ("openai", "simple", "none")


def templates(name: str) -> list[str]:
    """Templates by name (openai: the 80 of CLIP for ImageNet, as open_clip has them; simple; none), or a file's lines.

    Raises InputError for an unknown name and for lines without {}.
    """
    if name == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    if name == "simple":
        return list(SIMPLE)
    if name == "none":
        return ["{}"]
    lines = _lines(name, f"No templates {name!r}: no file of this name; {nearest(name, NAMES)}")
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong is not None or not lines:
        found = f"the line {wrong!r} has none" if wrong is not None else "it is empty"
        raise InputError(f"{name} must hold one template a line, with {{}} where the class's name goes; {found}.")
    return lines


def class_names(name: str) -> list[str]:
    """Class names from a file, one a line."""
    lines = _lines(name, f"No file of class names {name!r}; expected one name a line.")
    if not lines:
        raise InputError(f"{name} is empty; expected one class name a line.")
    return lines


def _lines(name: str, missing: str) -> list[str]:
    if not os.path.isfile(name):  # False for a name that is too long, where Path raises
        raise InputError(missing)
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name} is no UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"Cannot read {name}: {error.strerror}.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
