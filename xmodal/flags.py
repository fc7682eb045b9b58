"""From the text of a command line to the values of a dataclass's fields; help and the rarer types are tyro's.

A field's name is its flag, and `tyro.conf.Positional` makes it an argument without one. Common mistakes are found
here, before tyro sees them, because they deserve one plain line and tyro's account fills a box.
"""

from __future__ import annotations

import dataclasses
import io
import types
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from xmodal.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Field:
    """What the command line has to know of a dataclass's field."""

    hint: Any  # its type, without annotations
    positional: bool
    required: bool


def fields_of(config_type: type) -> dict[str, Field]:
    """The fields of a dataclass by name."""
    marker = tyro.conf.Positional[str].__metadata__[0]  # pyright: ignore[reportAttributeAccessIssue]
    marked, plain = get_type_hints(config_type, include_extras=True), get_type_hints(config_type)
    return {
        f.name: Field(
            plain[f.name],
            marker in getattr(marked[f.name], "__metadata__", ()),
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(config_type)
    }


def convert(value: Any, hint: Any) -> Any:
    """A YAML value or the text of a flag as the type of its field; ValueError if it isn't one."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if type(None) in get_args(hint) and value in (None, "None", ["None"]):
            return None
        for arm in get_args(hint):
            try:
                return convert(value, arm)
            except ValueError:
                continue
    elif origin is Literal:
        if value in get_args(hint):
            return value
    elif origin is tuple:
        arms = get_args(hint)
        if isinstance(value, list | tuple):
            each = [arms[0]] * len(value) if arms[-1] is Ellipsis else arms
            return tuple(convert(v, arm) for v, arm in zip(value, each, strict=True))
    elif hint is float and isinstance(value, str | int | float) and not isinstance(value, bool):
        return float(value)  # text as well: YAML 1.1 reads 1e-3 as text
    elif hint is int and isinstance(value, str | int) and not isinstance(value, bool):
        return int(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint in (bool, str):
        if isinstance(value, hint):
            return value
    elif hint not in (int, float, Path, type(None)):
        return value  # a kind of type that no recipe here has: tyro's to judge
    raise ValueError


def expected(hint: Any) -> str:
    """A type in words, for an error."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(arm) for arm in arms if arm is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arms))
    if origin is tuple:
        return f"a list, each item {expected(arms[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _takes_many(hint: Any) -> bool:
    """Whether a flag takes all values that follow it: `tuple[str, ...]`, also where None may stand instead."""
    return get_origin(hint) in (tuple, list) or any(get_origin(arm) in (tuple, list) for arm in get_args(hint))


def flag(name: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + name.replace("_", "-")


def _is_flag(token: str) -> bool:
    """`-3` and `-1e-3` are values, `-` is a file by convention."""
    if not token.startswith("-") or token == "-":
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False


@dataclass(frozen=True)
class Scanned:
    """The fields that have a flag, with their values; the tokens of flags and their values; those of neither."""

    flags: dict[str, Any]
    flagged: list[str]
    loose: list[str]

    @property
    def apart(self) -> list[str]:
        """Flags first: tyro takes a list of positional tokens only where they stand together."""
        return [*self.flagged, "--", *self.loose] if self.loose else self.flagged


def scan(argv: list[str], fields: dict[str, Field], prog: str) -> Scanned:
    """Take a command line apart. After "--" no token is a flag.

    tyro can't tell a flag given from a default. What is wrong is said here too: tyro's account fills a box.
    """
    flags: dict[str, Any] = {}
    flagged: list[str] = []
    loose: list[str] = []
    end = argv.index("--") if "--" in argv else len(argv)
    for token, values in _groups(argv[:end]):
        if token is None:
            loose += values
            continue
        word, equals, value = token.partition("=")
        name, values = word[2:].replace("-", "_"), [value, *values] if equals else values
        switch = True
        if name not in fields and name.startswith("no_") and name[3:] in fields and fields[name[3:]].hint is bool:
            name, switch = name[3:], False
        if not word.startswith("--") or name not in fields or fields[name].positional:
            known = [flag(name) for name, field in fields.items() if not field.positional]
            raise InputError(f"{prog} has no flag {word}; {nearest(word.replace('_', '-'), known)}")
        hint = fields[name].hint
        if hint is bool:
            if equals:
                raise InputError(f"{word} is a switch and takes no value: {flag(name)} or {flag('no_' + name)}.")
            flags[name], rest = switch, values
        elif _takes_many(hint):
            if name in flags:
                raise InputError(f"{word} is given twice; put all values behind one: {word} A B.")
            flags[name], rest = _flag_value(word, values, hint), []
        elif not values:
            raise InputError(f"{word} needs a value: {expected(hint)}.")
        else:
            flags[name], rest = _flag_value(word, values[0], hint), values[1:]
        flagged += [token, *values[bool(equals) : len(values) - len(rest)]]  # --flag=value is one token
        loose += rest
    loose += argv[end + 1 :]
    positional = [field for field in fields.values() if field.positional]
    if len(loose) > len(positional) and not any(_takes_many(field.hint) for field in positional):
        raise InputError(
            f"{prog} has no use for {loose[len(positional)]!r}; a value follows its flag. See: {prog} --help"
        )
    return Scanned(flags, flagged, loose)


def _groups(argv: list[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Each flag with the tokens that follow it; those before the first flag come with None."""
    flag, values = None, []
    for token in argv:
        if _is_flag(token):
            if flag or values:
                yield flag, values
            flag, values = token, []
        else:
            values.append(token)
    if flag or values:
        yield flag, values


def _flag_value(word: str, value: Any, hint: Any) -> Any:
    try:
        return convert(value, hint)
    except ValueError:
        found = " ".join(value) if isinstance(value, list) else value
        raise InputError(f"{word} {found}: expected {expected(hint)}.") from None


def fill(
    config_type: type[T],
    scanned: Scanned,
    prog: str,
    fields: dict[str, Field],
    stated: dict[str, Any],
) -> T:
    """The flags over the defaults. What `scan` let pass can still lack something, or be of a rare type."""
    for name, field in fields.items():
        if field.required and name not in stated and not (field.positional and scanned.loose):
            needed = name.upper() if field.positional else flag(name)
            raise InputError(f"{prog} needs {needed}. See: {prog} --help")
    required = {name: stated.get(name, tyro.MISSING) for name, field in fields.items() if field.required}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(config_type, args=scanned.apart, prog=prog, default=config_type(**required))
    except SystemExit:
        raise InputError(f"{_first_sentence(said.getvalue())}\nSee: {prog} --help") from None


def _first_sentence(box: str) -> str:
    """What tyro says inside its box, without title, border and the help that follows."""
    lines = [line.strip("│|╭╮╰╯─+- ") for line in box.strip().splitlines()[1:]]
    end = lines.index("") if "" in lines else len(lines)
    return " ".join(lines[:end]) or box.strip()


def spelled(name: str, value: Any) -> str:
    """A field and its value as they are typed."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple | list) else value}"
