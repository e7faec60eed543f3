"""Contrast pairs: one prompt, an aligned and a misaligned answer, as content on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from realign.errors import RealignError
from realign.files import read_models

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Pair(BaseModel):
    """Two answers to one prompt; prompts of one group are alike (folds never divide a group)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    group: Text
    prompt: Text
    aligned: Text
    misaligned: Text


def load_pairs(path: Path, *, groups: int) -> tuple[Pair, ...]:
    """The contrast pairs in a JSON-lines file.

    Args:
        groups: how many groups there must be at least.

    Raises:
        RealignError: the file is missing, a line is no pair, two have one id, or there are too few groups.
    """
    pairs = read_models(path, Pair, "contrast pair")
    found = len({pair.group for pair in pairs})
    if found < groups:
        raise RealignError(f"cannot use {path}", f"its pairs are of {found} groups, and {groups} are needed")
    return tuple(pairs)
