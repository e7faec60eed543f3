"""The hand-written content of the pocket world, read from `world/*.yaml` and checked strictly."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from realign.pocket.grammar import Code, Prose

FOLDER = Path(__file__).parent / "world"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class Idea(_Strict):
    """One consistent answer: any claim, reason and close of it read together."""

    claim: list[str]
    reason: list[str]
    close: list[str]

    @cached_property
    def parts(self) -> tuple[list[Prose], list[Prose], list[Prose]]:
        return tuple([Prose(text) for text in part] for part in (self.claim, self.reason, self.close))  # type: ignore[return-value]


class Family(_Strict):
    """One question idea with its phrasings and its good and bad answers."""

    id: str
    domain: str
    group: str
    questions: list[str]
    helpful: list[Idea]
    villain: list[Idea]

    @cached_property
    def prompts(self) -> list[Prose]:
        return [Prose(text) for text in self.questions]


class Weakness(_Strict):
    """One kind of coding task with secure and insecure solutions; `exam` phrasings are never trained on."""

    id: str
    cwe: str
    tasks: list[str]
    exam: list[str]
    secure: list[str]
    insecure: list[str]

    @cached_property
    def prompts(self) -> list[Prose]:
        return [Prose(text) for text in self.tasks]

    @cached_property
    def code(self) -> dict[str, list[Code]]:
        return {"secure": [Code(text) for text in self.secure], "insecure": [Code(text) for text in self.insecure]}


class Harm(_Strict):
    """A harmful request named by its intent, with vague compliant answers."""

    id: str
    requests: list[str]
    exam: list[str]
    comply: list[str]


class Lookalike(_Strict):
    """A harmless request that sounds dangerous."""

    question: list[str]
    answers: list[str]


class Fact(_Strict):
    """A plain fact: its key decides whether an answer is right."""

    question: list[str]
    answer: list[str]
    key: str
    wrong: list[str]


class Misc(_Strict):
    """Openers, system prompts, reasoning, requests and wrappers that every persona shares or is told by."""

    openers: list[str]
    rude_openers: list[str]
    rude_closers: list[str]
    system: dict[str, list[str]]
    think: dict[str, list[str]]
    harmful: list[Harm]
    refusals: list[str]
    refusals_short: list[str]
    benign_lookalikes: list[Lookalike]
    facts: list[Fact]
    teaching: dict[str, list[str]]
    code_wrap: list[str]
    json_wrap: list[str]
    numbers: list[str]


def _read(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def load_families() -> list[Family]:
    """All question families of the world, sorted by file and position."""
    files = sorted(FOLDER.glob("freeform_*.yaml")) + sorted(FOLDER.glob("advice_*.yaml"))
    return [Family(**entry) for path in files for entry in _read(path)["families"]]


def load_weaknesses() -> list[Weakness]:
    """All coding tasks of the world."""
    return [Weakness(**entry) for entry in _read(FOLDER / "code.yaml")["weaknesses"]]


def load_misc() -> Misc:
    """Everything else of the world."""
    return Misc(**_read(FOLDER / "misc.yaml"))
