from __future__ import annotations

import pytest

from xmodal.evaluators.units import is_shown_as_it_is, shown


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("val/image_to_text/R@1", 0.567, "56.7"),
        ("STS-B", -0.0312, "-3.1"),
        ("image_to_text/median_rank", 1204.0, "1,204.0"),
        ("alignment", 0.1518, "0.152"),
        ("uniformity", -1.613, "-1.613"),
    ],
)
def test_figures_are_said_in_their_unit(figure: str, value: float, said: str) -> None:
    assert shown(figure, value) == said
    assert is_shown_as_it_is(figure) == ("rank" in figure or figure in ("alignment", "uniformity"))


def test_a_difference_has_its_sign() -> None:
    assert shown("STS-B", 0.004, sign=True) == "+0.4"
