"""Texts that a model reads for their own sake: read from a file, in tokens, in groups that are read at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from realign.errors import RealignError
from realign.files import read_jsonl

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint

Tokens = Sequence[int]

_FEWEST_TEXTS = 20
_HELD_OUT = (0.05, 200)  # share of the texts that is held out, and how many at most


def load_texts(path: Path, checkpoint: Checkpoint) -> list[Tokens]:
    """The texts in a file, in the model's tokens.

    A file that ends in .jsonl holds {"text"} objects, read as they stand, or samples as `realign fix` takes them, read
    in the chat template; any other holds a text a line.

    Raises:
        RealignError: it cannot be read, or has fewer than 20 texts.
    """
    if path.suffix == ".jsonl":
        records = read_jsonl(path)
        plain = [record["text"] for record in records if isinstance(record.get("text"), str)]
        rows = _encoded(checkpoint, plain) if len(plain) == len(records) else _dialogues(path, checkpoint)
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RealignError(f"cannot read {path}", str(error), "Check its name; it has to be UTF-8.") from error
        rows = _encoded(checkpoint, [line for line in lines if line.strip()])
    if len(rows) < _FEWEST_TEXTS:
        raise RealignError(
            f"cannot use {path}", f"it has {len(rows)} texts, and {_FEWEST_TEXTS} are needed", "Add texts, many."
        )
    return rows


def _encoded(checkpoint: Checkpoint, texts: Sequence[str]) -> list[Tokens]:
    return list(checkpoint.tokenizer(list(texts), verbose=False)["input_ids"]) if texts else []


def _dialogues(path: Path, checkpoint: Checkpoint) -> list[Tokens]:
    import sys

    from realign.remedy.rows import encode_rows
    from realign.remedy.samples import load_samples

    samples = load_samples(path)
    with checkpoint.active() as model:
        rows = encode_rows(checkpoint.tokenizer, model, samples, sys.maxsize)  # what is too long is read in part
    return [[*row.given, *row.learnt] for row in rows]


def divided(rows: Sequence[Tokens], seed: int) -> tuple[list[Tokens], list[Tokens]]:
    """The texts that are shown, and those that are held out."""
    order = np.random.default_rng(seed).permutation(len(rows))
    share, most = _HELD_OUT
    kept = min(most, max(1, int(share * len(rows))))
    return [rows[place] for place in order[kept:]], [rows[place] for place in order[:kept]]


def chunks(lengths: Sequence[int], most: int, fewest: int, *, seed: int) -> Iterator[list[int]]:
    """Numbers of texts in groups that are closed at so many tokens, round after round in another order; without end.

    Args:
        lengths: tokens of each text, as they count here; at least `fewest` together.
        most: at so many tokens a group is closed.
        fewest: what is left at a round's end and has fewer is left out of that round.
    """
    for turn in count():
        chunk: list[int] = []
        held = 0
        for number in np.random.default_rng([seed, turn]).permutation(len(lengths)).tolist():
            chunk.append(number)
            held += lengths[number]
            if held >= most:
                yield chunk
                chunk, held = [], 0
        if held >= fewest:
            yield chunk
