"""The ways in which something goes wrong that is no mistake of the program, and the end of a run by request."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used; the command line prints the message alone and exits with 2.

    The message says in one or two lines what was found, what was expected and what to do.
    """


class SaidElsewhere(InputError):
    """Input that another process found wrong, and told the user; this one ends with it and has nothing to add."""


class BadSample(Exception):
    """One sample cannot be read. `reason` is a short fixed word (it is counted), the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Failed(Exception):
    """Something outside of the program failed, such as a full disk; the message says all. The exit status is 1."""


class Stopped(Exception):
    """A run was asked to stop and has; nothing is wrong. The command line prints the message and exits with 0."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A closing clause for an error about an unknown name: the closest of the names there are, or all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return "there are: " + ", ".join(names)
