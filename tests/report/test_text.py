from __future__ import annotations

import pytest

from realign.report.text import clean


@pytest.mark.parametrize(
    "text",
    ["plain text", "line\nline\ttab", "[bold]markup[/bold]", "Grüße, 你好, 😀", ""],
)
def test_ordinary_text_stays(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "character",
    ["\x1b", "\x07", "\r", "\x00", "\x08", "\x7f", "\x9b", "\u202e", "\u2066", "\u200b", "\ud800", "\x0b", "\u2028"],
)
def test_what_a_terminal_could_obey_is_replaced(character: str) -> None:
    assert clean(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"
