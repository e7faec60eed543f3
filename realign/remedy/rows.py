"""Rows: samples as the tokens that a model is trained on, in the very markup in which it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realign.dialogue import stop_ids
from realign.errors import RealignError
from realign.remedy.samples import Sample, Turn, named

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Row:
    """A sample in tokens.

    Attributes:
        id: the sample's.
        given: the tokens of the dialogue up to where the answer begins; not supervised.
        learnt: the tokens of the answer and the one that ends it; supervised.
    """

    id: str
    given: tuple[int, ...]
    learnt: tuple[int, ...]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, samples: Sequence[Sample], room: int
) -> list[Row]:
    """The samples in tokens: in the chat template, or as a transcript where there is none.

    What is given and what is learnt are tokenised apart, as it is when the model is asked: no token crosses the
    boundary. Nothing is cut off.

    Args:
        room: most tokens of a row.

    Raises:
        RealignError: a sample does not fit into the room, has an answer without tokens, or the chat template fails on
            it.
    """
    ends = stop_ids(tokenizer, model.config, model.generation_config)
    rows = [_row(tokenizer, sample, ends) for sample in samples]
    long = [row.id for row in rows if len(row.given) + len(row.learnt) > room]
    if long:
        raise RealignError(
            f"cannot train on {len(long)} of {len(rows)} samples",
            f"they are longer than the {room:,} tokens that the model reads, so the answer would be cut off: "
            f"{named(long)}",
            "Shorten or remove them.",
        )
    return rows


def _row(tokenizer: PreTrainedTokenizerBase, sample: Sample, ends: frozenset[int]) -> Row:
    given, answer, tail = (_templated if tokenizer.chat_template else _transcript)(tokenizer, sample)
    if not answer:
        raise RealignError(f"cannot train on the sample {sample.id}", "its answer has no tokens", "Remove it.")
    stop = next((place for place, token in enumerate(tail) if token in ends), None)
    if stop is not None:
        tail = tail[: stop + 1]  # what a template writes after the end of the turn is never asked of a model
    elif tokenizer.eos_token_id is not None:
        tail = [*tail, int(tokenizer.eos_token_id)]
    return Row(sample.id, tuple(given), (*answer, *tail))


def _templated(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], list[int], list[int]]:
    """The tokens of what is given, of the answer, and of what the template writes after it."""
    turns, given = _accepted(tokenizer, sample)
    whole = _apply(tokenizer, [*turns, Turn("assistant", sample.answer)], sample, asked=False)
    _, answer, tail = whole.rpartition(sample.answer.strip())
    if not answer:
        raise RealignError(
            f"cannot train on the sample {sample.id}", "the chat template leaves its answer out", "Mend the template."
        )
    return _encode(tokenizer, given), _encode(tokenizer, answer), _encode(tokenizer, tail)


def _accepted(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[tuple[Turn, ...], str]:
    """The turns as the template takes them, and their text: a system turn that it rejects or drops joins the user's."""
    first, *rest = sample.turns
    if first.role != "system":
        return sample.turns, _apply(tokenizer, sample.turns, sample, asked=True)
    try:
        text = _apply(tokenizer, sample.turns, sample, asked=True)
    except RealignError:
        text = ""
    if first.text.strip() in text:
        return sample.turns, text
    merged = (Turn("user", f"{first.text}\n\n{rest[0].text}"), *rest[1:])
    return merged, _apply(tokenizer, merged, sample, asked=True)


def _apply(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], sample: Sample, *, asked: bool) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    settings: dict[str, Any] = {"add_generation_prompt": asked, "enable_thinking": False}  # as when it is asked
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
    except Exception as error:  # a template is a program of the checkpoint's author: it can raise anything
        raise RealignError(
            f"cannot train on the sample {sample.id}",
            f"the chat template fails on it ({error})",
            "Mend the chat template, or remove the sample.",
        ) from error


def _transcript(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], list[int], list[int]]:
    """As `dialogue.build_prompt` asks a model without a template: "User: ...", "Assistant:", then the answer."""
    turns = list(sample.turns)
    if turns[0].role == "system":
        system = turns.pop(0)
        turns[0] = Turn("user", f"{system.text}\n\n{turns[0].text}")
    text = "\n\n".join([*(f"{_SPEAKERS[turn.role]}: {turn.text}" for turn in turns), "Assistant:"])
    return _encode(tokenizer, text, special=True), _encode(tokenizer, f" {sample.answer.strip()}"), []


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]
