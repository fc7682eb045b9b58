"""Templates of pages: whatever they are given is text, made plain and escaped wherever it stands."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xmodal.evaluators.scores import plain
from xmodal.report.names import minus, words

MOST_LETTERS = 240  # of a caption or a value


def environment() -> Environment:
    """Every string that isn't the template's own is made plain, then escaped; there is no way around either."""
    environment = Environment(
        loader=PackageLoader("xmodal", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else plain(value),
    )
    environment.filters |= {"words": words, "brief": brief, "anchor": anchor, "cosine": cosine}
    return environment


def brief(value: Any, most: int = MOST_LETTERS) -> str:
    """A value as text of at most so many letters."""
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def cosine(value: float) -> str:
    return minus(f"{value:.2f}")


def anchor(name: str) -> str:
    """A name as part of the address of a place in the page."""
    return re.sub(r"\W+", "-", name)
