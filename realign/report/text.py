"""Text that came from a model or a file, made fit for a terminal."""

from __future__ import annotations

_KEPT = frozenset("\n\t")


def clean(text: str) -> str:
    """The text with every character that a terminal could obey, or that hides or turns text, replaced by "�".

    Control characters (escape sequences among them), direction marks and lone surrogates are not printable; line ends
    and tabs stay.
    """
    return "".join(
        character if character.isprintable() or character in _KEPT else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
