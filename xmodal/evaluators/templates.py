"""Prompt templates by name or from a file: lines with {} where the class's name goes."""

from __future__ import annotations

import os
from pathlib import Path

from xmodal.data.lines import read_lines, read_templates
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
    if not os.path.isfile(name):  # False for a name that is too long, where Path raises
        raise InputError(f"No templates {name!r}: no file of this name; {nearest(name, NAMES)}")
    return read_templates(Path(name))


def class_names(name: str) -> list[str]:
    """Class names from a file, one a line."""
    if not os.path.isfile(name):
        raise InputError(f"No file of class names {name!r}; expected one name a line.")
    lines = read_lines(Path(name))
    if not lines:
        raise InputError(f"{name} is empty; expected one class name a line.")
    return lines
