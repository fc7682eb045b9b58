"""`--help`: what a recipe is, what its presets stand for, and what the docstring below each field says of its flag."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import tyro

from xmodal.flags import spelled


def print_help(config_type: type, prog: str, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """The recipe's own docstring, what its presets stand for, and every flag with its default. Ends the program."""
    about = [(sys.modules[config_type.__module__].__doc__ or "").strip()]
    for name, values in presets.items():
        about.append(f"--preset {name} stands for " + " ".join(spelled(n, v) for n, v in values.items()))
    print(_folded("\n\n".join(about), shutil.get_terminal_size().columns), end="\n\n")
    # Comments beside a number cite its source; help comes from docstrings alone.
    only_docstrings = (tyro.conf.HelptextFromCommentsOff,)
    tyro.cli(_with_help(config_type), args=["--help"], prog=prog, description="", config=only_docstrings)


def docstrings(config_type: type) -> dict[str, str]:
    """What stands below each field of a dataclass and those that it inherits from, each in one line."""
    found: dict[str, str] = {}
    for owner in reversed(config_type.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):  # made without a file
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = getattr(below.value, "value", None)
                if isinstance(text, str):
                    found[field.target.id] = " ".join(text.split())
    return found


def _folded(text: str, width: int) -> str:
    """Paragraphs in lines of at most so many letters. Those with indented or aligned lines, as commands are, stay."""
    return "\n\n".join(
        paragraph
        if any("  " in line for line in paragraph.splitlines())
        else textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)
        for paragraph in text.split("\n\n")
    )


def _with_help(config_type: type) -> type:
    """A dataclass of the same fields whose help is given: tyro keeps line breaks of docstrings, wherever they are."""
    hints, said = get_type_hints(config_type, include_extras=True), docstrings(config_type)
    fields: list[Any] = []
    for f in dataclasses.fields(config_type):
        hint = Annotated[hints[f.name], tyro.conf.arg(help=said[f.name])] if f.name in said else hints[f.name]
        default = dataclasses.field(default=f.default, default_factory=f.default_factory, kw_only=True)  # pyright: ignore[reportCallIssue, reportArgumentType]
        fields.append((f.name, hint, default))
    return dataclasses.make_dataclass(config_type.__name__, fields)
