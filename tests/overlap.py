"""Shared runs of words between texts: how the tests see that one text was not copied from another."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS = 8


def runs(text: str, length: int = WORDS) -> set[str]:
    r"""Every run of `length` consecutive words (`\w+`, lower-cased) of the text, joined by spaces."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def shared(left: Iterable[str], right: Iterable[str], length: int = WORDS) -> set[str]:
    """The runs that some text on the left and some text on the right have in common."""
    known = {run for text in left for run in runs(text, length)}
    return {run for text in right for run in runs(text, length) & known}
