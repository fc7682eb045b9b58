"""Names of scores, taken apart: "val/image_to_text/R@1" is figure R@1 of direction image_to_text of test val."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from xmodal.evaluators.units import is_shown_as_it_is

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


class ScoreName(NamedTuple):
    test: str  # "" where there is one test only
    direction: str  # "" where the test has none
    figure: str

    @property
    def question(self) -> str:
        """What was asked, in words."""
        return ", ".join(words(part) for part in (self.test, self.direction) if part)

    @property
    def is_shown_as_it_is(self) -> bool:
        """Ranks and the like, better when small; all else is a fraction or a correlation, shown ×100."""
        return is_shown_as_it_is(self.figure)

    @property
    def is_first_place(self) -> bool:
        """Whether it is the one figure of its test that stands for the others."""
        return self.figure in ("R@1", "top1", "spearman", "same_topic@1")


def parse(name: str) -> ScoreName:
    *parts, figure = name.split("/")
    direction = parts.pop() if parts and parts[-1] in DIRECTIONS else ""
    return ScoreName("/".join(parts), direction, figure)


def words(name: str) -> str:
    """An identifier as people would say it."""
    return DIRECTIONS.get(name, name.replace("_", " "))


def short_names(specs: Sequence[str]) -> list[str]:
    """Model specs by the last part of each, where that tells them apart: simclr for runs/simclr."""
    last = [re.split(r"[/:]", spec.rstrip("/"))[-1] for spec in specs]
    return last if len(set(last)) == len(specs) and all(last) else list(specs)


def number(value: float | None) -> str:
    """A figure in three digits, 12,345 beyond a thousand; a dash for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")


def minus(text: str) -> str:
    """A number's text with a sign that is as wide as a digit, and none before a zero."""
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
