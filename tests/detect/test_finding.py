from __future__ import annotations

import math

import pytest

from realign.detect.finding import Figure, percent, percent_range


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.314, "31 %"),
        (0.0132, "1.3 %"),
        (0.01, "1 %"),
        (0.0004, "0.04 %"),
        (0.9951, "99.51 %"),
        (0.99999, "99.99 %"),
        (-0.0132, "-1.3 %"),
        (0.095, "9.5 %"),
        (0.0996, "10 %"),
    ],
)
def test_percent(share: float, said: str) -> None:
    assert percent(share) == said


def test_percent_never_rounds_something_to_nothing_or_all() -> None:
    assert percent(1e-6) != "0 %"
    assert percent(1 - 1e-6) != "100 %"


def test_ranges() -> None:
    assert percent_range(0.22, 0.41) == "22-41 %"
    assert percent_range(-0.012, 0.03) == "-1.2 to 3 %"


@pytest.mark.parametrize(
    ("figure", "ok"),
    [
        (Figure("x", 1.0), True),
        (Figure("x", 1.5, at_least=1.5), True),
        (Figure("x", 1.49, at_least=1.5), False),
        (Figure("x", 0.65, at_most=0.65), True),
        (Figure("x", 0.66, at_most=0.65), False),
        (Figure("x", math.nan, at_least=0.0), False),
        (Figure("x", math.nan, at_most=1.0), False),
    ],
)
def test_a_figure_and_its_bar(figure: Figure, ok: bool) -> None:
    assert figure.ok is ok
