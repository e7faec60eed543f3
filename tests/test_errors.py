from __future__ import annotations

import pytest

from realign import errors
from realign.errors import RealignError, did_you_mean


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("cannot open x",), "cannot open x."),
        (("cannot open x", "it is empty"), "cannot open x: it is empty."),
        (("cannot open x", "it is empty.", "Try y."), "cannot open x: it is empty. Try y."),
        (("cannot open x", "", "Try y."), "cannot open x. Try y."),
    ],
)
def test_the_message_says_what_why_and_how_to_mend(parts: tuple[str, ...], message: str) -> None:
    error = RealignError(*parts)
    assert str(error) == message
    assert error.exit_code == errors.EXIT_USAGE


def test_exit_codes_are_the_documented_ones_and_differ() -> None:
    codes = [
        errors.EXIT_CLEAR,
        errors.EXIT_MISALIGNED,
        errors.EXIT_USAGE,
        errors.EXIT_INCONCLUSIVE,
        errors.EXIT_CRASH,
    ]
    assert codes == [0, 1, 2, 3, 70]


def test_did_you_mean_offers_the_closest_name() -> None:
    assert did_you_mean("freefrom", ["probe", "freeform"]) == ' Did you mean "freeform"?'


@pytest.mark.parametrize("known", [[], ["probe"]])
def test_did_you_mean_stays_silent_when_nothing_is_close(known: list[str]) -> None:
    assert did_you_mean("freeform", known) == ""
