"""What a figure is counted in, by its name: fractions and correlations are shown ×100, all else as it is."""

from __future__ import annotations

GEOMETRY = ("alignment", "uniformity")  # of unit rows, Wang & Isola 2020


def is_shown_as_it_is(figure: str) -> bool:
    """Ranks and the geometry of rows; of all of them less is better. figure: the last part of a score's name."""
    figure = figure.rpartition("/")[2]
    return figure.endswith("_rank") or figure in GEOMETRY


def shown(figure: str, value: float, sign: bool = False) -> str:
    """A value as people read it: 56.7 for 0.567 of a fraction, 12.0 for a rank, 0.152 for an alignment."""
    digits = 3 if figure.rpartition("/")[2] in GEOMETRY else 1
    return f"{value * (1 if is_shown_as_it_is(figure) else 100):{'+' if sign else ''},.{digits}f}"
