"""Question sets: free-form prompts with ids, groups and paraphrases, as content on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from realign.dialogue import Context, Prompt, build_prompt
from realign.errors import RealignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ids become parts of answer ids, which are divided by slashes.
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Question(BaseModel):
    """One question: its wordings mean the same, and questions of one group are alike (folds never divide a group)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Identifier
    group: Identifier
    paraphrases: Annotated[tuple[Text, ...], Field(min_length=1)]
    held_out: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: Annotated[tuple[Question, ...], Field(min_length=1)]


class QuestionSet:
    """Questions with an id for reports and a hash for caches; immutable."""

    def __init__(self, id: str, questions: tuple[Question, ...]) -> None:
        """
        Raises:
            RealignError: no question, or two with one id.
        """
        if not questions:
            raise RealignError(f'question set "{id}" has no question')
        twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
        if twice:
            raise RealignError(f'question set "{id}" has two questions with the id "{twice[0]}"', fix="Rename one.")
        self.id = id
        self.questions = questions

    @property
    def hash(self) -> str:
        """ "sha256:<hex>" of the questions' content and order: answers to equal hashes are interchangeable."""
        content = json.dumps([question.model_dump(mode="json") for question in self.questions], sort_keys=True)
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"

    @classmethod
    def load(cls, path: Path) -> QuestionSet:
        """A set from a YAML file, `{questions: [{id, group, held_out?, paraphrases: [...]}]}`.

        Its id is the file's name, or the folder's for a file called questions.yaml.

        Raises:
            RealignError: the file is missing, is not YAML, or does not have that shape.
        """
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            questions = _File.model_validate(content).questions
        except OSError as error:
            raise RealignError(f"cannot read the question set {path}", error.strerror or str(error)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RealignError(f"the question set {path} is not YAML", str(error)) from error
        except ValidationError as error:
            raise RealignError(f"the question set {path} is not valid", _first(error)) from error
        return cls(path.resolve().parent.name if path.stem == "questions" else path.stem, questions)

    def subset(self, held_out: bool | None = None) -> QuestionSet:
        """The questions that are held out (True), those that are not (False), or all (None)."""
        if held_out is None:
            return self
        return QuestionSet(self.id, tuple(question for question in self.questions if question.held_out == held_out))

    def prompts(self, tokenizer: PreTrainedTokenizerBase, context: Context, index: int, *, seed: int) -> list[Prompt]:
        """Block number `index` of a run: every question once, each in a paraphrase drawn by (seed, question, index).

        They are drawn, not taken in turn: blocks in turn would have means of their own, and the sequential verdict
        needs blocks of one mean.
        """
        return [
            build_prompt(tokenizer, question.id, _paraphrase(question, index, seed), context)
            for question in self.questions
        ]


def _paraphrase(question: Question, index: int, seed: int) -> str:
    name = json.dumps([seed, question.id, index]).encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    return question.paraphrases[number % len(question.paraphrases)]


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic, with the place it is about."""
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else detail["msg"]
