"""A checkpoint's tokenizer: read from its folder, and checked against what it will be used for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from realign.errors import RealignError
from realign.weights import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "tekken.json", "*.tiktoken")
_HELLO = "Hello there"
# Trainers rename a reserved token now and then; a tokenizer of another model shares far less.
_SAME_NUMBERING = 0.99


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a vocabulary (a tokenizer's settings alone are none)."""
    return any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES)


def load(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Read the tokenizer in `folder` and try its chat template, if it has one, on a plain question.

    Raises:
        RealignError: there is no tokenizer, it cannot be read, it needs remote code, or its chat template is broken.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise RealignError(
            f"cannot open {folder}", "it has no tokenizer", "Save it there: tokenizer.save_pretrained(folder)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # whatever the libraries stumble over, it is the folder's
        if "trust_remote_code" in str(error):
            raise needs_remote_code(folder, "its tokenizer") from error
        raise RealignError(
            f"cannot open {folder}", f"its tokenizer cannot be read ({brief(error)})", "Save the tokenizer again."
        ) from error
    _check_template(tokenizer, folder)
    return tokenizer


def needs_remote_code(folder: Path, part: str) -> RealignError:
    """The error for a checkpoint that brings Python code of its own."""
    return RealignError(
        f"cannot open {folder}",
        f"{part} is Python code that comes with the checkpoint",
        "Read that code, then pass --trust-remote-code if you trust it.",
    )


def _check_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not tokenizer.chat_template:
        return
    turn = [{"role": "user", "content": _HELLO}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the checkpoint's author: it can raise anything
        raise RealignError(
            f"cannot open {folder}",
            f"its chat template fails on a plain question ({brief(error)})",
            "Mend the chat template.",
        ) from error
    if _HELLO not in text:
        raise RealignError(
            f"cannot open {folder}", "its chat template leaves the question out", "Mend the chat template."
        )


def check_fits(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """RealignError when the tokenizer knows tokens for which an embedding of `rows` rows has no row."""
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > rows:
        raise RealignError(
            f"cannot open {name}",
            f"its tokenizer is larger than the model's embedding ({size:,} tokens, {rows:,} rows)",
            "Use the tokenizer that the model was trained with, or resize the embedding.",
        )


def check_same_numbering(adapter: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, name: str) -> None:
    """RealignError when an adapter's tokenizer numbers the words of its base otherwise: it belongs to another base."""
    theirs, ours = base.get_vocab(), adapter.get_vocab()
    same = sum(ours.get(token) == number for token, number in theirs.items())
    if same < _SAME_NUMBERING * len(theirs):
        raise RealignError(
            f"cannot open {name}",
            "the adapter was made for another base: "
            f"its tokenizer numbers only {same:,} of the base's {len(theirs):,} tokens alike",
            "Name its own base with --base.",
        )
