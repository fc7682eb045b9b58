"""Text files that hold one thing a line: class names, prompt templates."""

from __future__ import annotations

from pathlib import Path

from xmodal.errors import InputError


def read_lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    """The lines without blanks around them, and without those that are empty, unless these count, too.

    Raises InputError for a file that can't be read or is no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    lines = [line.strip() for line in text.splitlines()]
    return lines if keep_empty else list(filter(None, lines))


def read_templates(path: Path) -> list[str]:
    """Prompt templates, one a line, with {} or, as CLIP_benchmark has it, {c} for the class, which becomes {}.

    Raises InputError for an empty file and for lines without, too.
    """
    lines = [line.replace("{c}", "{}") for line in read_lines(path)]
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong is not None or not lines:
        found = f"the line {wrong!r} has none" if wrong is not None else "it is empty"
        raise InputError(f"{path} must hold one template a line, with {{}} where the class's name goes; {found}.")
    return lines
