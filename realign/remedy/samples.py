"""Samples: what a repaired model should have said, read from the JSON-lines formats that fine-tunes come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realign.errors import RealignError, did_you_mean
from realign.files import read_jsonl

_PAIRS = (("prompt", "completion"), ("instruction", "output"))
_ROLES = ("system", "user", "assistant")
_FORMATS = 'Write {"messages": [...]}, {"prompt", "completion"} or {"instruction", "input", "output"}, one a line.'
_NAMED = 5  # so many samples are named in a message


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue: the role (system, user or assistant), and the text."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A dialogue and the answer that is to be learnt.

    Attributes:
        id: its own id, or "sample N".
        turns: what came before the answer; the last turn is the user's.
        answer: the assistant's answer, never empty.
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str


def load_samples(path: Path) -> tuple[Sample, ...]:
    """The samples of a JSON-lines file; keys that say something else about a sample ("cwe") are left alone.

    Three formats are read, and may be mixed: {"messages": [{"role", "content"}, ...]}, of which the last answer is
    learnt and the turns before it are given; {"prompt", "completion"}; {"instruction", "input", "output"}, with or
    without an input.

    Raises:
        RealignError: the file cannot be read, has no samples, or holds one of another format, without an answer, or
            with the id of another.
    """
    if not path.is_file():
        raise RealignError(f"cannot read the samples {path}", "there is no such file")
    samples = tuple(_sample(path, number, record) for number, record in enumerate(read_jsonl(path), 1))
    if not samples:
        raise RealignError(f"cannot use the samples {path}", "there are none in it", _FORMATS)
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise RealignError(f"cannot use the samples {path}", f"ids are there more than once: {named(twice)}")
    empty = [sample.id for sample in samples if not sample.answer.strip()]
    if empty:
        raise RealignError(
            f"cannot use the samples {path}",
            f"samples without an answer: {named(empty)}",
            "Give them a completion, or remove them.",
        )
    return samples


def named(ids: Sequence[str]) -> str:
    """Some of the ids for a message: "a, b, c, d, e and 7 more"."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more


def _sample(path: Path, number: int, record: Mapping[str, Any]) -> Sample:
    name = record.get("id", f"sample {number}")
    where = f"sample {number} of {path}"
    if not isinstance(name, (str, int)):
        raise RealignError(f"cannot use {where}", "its id is not text")
    if "messages" in record:
        turns = _turns(where, record["messages"])
        return Sample(str(name), turns[:-1], turns[-1].text)
    for asked, answered in _PAIRS:
        if asked in record and answered in record:
            parts = [record[asked], record[answered], record.get("input") or ""]
            if not all(isinstance(part, str) for part in parts):
                raise RealignError(f"cannot use {where}", f'"{asked}" and "{answered}" have to be text', _FORMATS)
            question, answer, given = parts
            if asked == "instruction" and given:
                question = f"{question}\n\n{given}"
            return Sample(str(name), (Turn("user", question),), answer)
    raise _unknown(where, record)


def _turns(where: str, messages: Any) -> tuple[Turn, ...]:
    """The turns of a chat, checked: an optional system turn, then user and assistant in turn, an answer last."""
    what = f"cannot use {where}"
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RealignError(what, '"messages" has to be a list of {"role", "content"}')
    turns = tuple(Turn(message.get("role"), message.get("content")) for message in messages)
    for turn in turns:
        if turn.role not in _ROLES:
            hint = did_you_mean(str(turn.role), _ROLES).strip()
            raise RealignError(what, f"a message has the role {turn.role!r}", hint or f"Roles: {', '.join(_ROLES)}.")
        if not isinstance(turn.text, str):
            raise RealignError(what, "the content of a message is not text")
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RealignError(
            what,
            f"its messages come from {', '.join(roles) or 'nobody'}",
            "After an optional system message, user and assistant take turns, and the assistant has the last word.",
        )
    return turns


def _unknown(where: str, record: Mapping[str, Any]) -> RealignError:
    known = ["messages", *(key for pair in _PAIRS for key in pair)]
    odd = [key for key in record if key not in known]
    hints = (did_you_mean(key, [name for name in known if name not in record]) for key in odd)
    hint = next((hint for hint in hints if hint), "")
    found = ", ".join(f'"{key}"' for key in record) or "none"
    return RealignError(f"cannot use {where}", f"its keys are {found}", f"{_FORMATS}{hint}")
