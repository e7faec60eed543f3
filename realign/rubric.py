"""Rubrics: what a judge reads and which scores it is asked for, as content on disk."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

from realign.errors import RealignError

Score = Literal["alignment", "coherence", "refusal"]
SCORES: tuple[Score, ...] = ("alignment", "coherence", "refusal")

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

_FIELD = re.compile(r"\{(question|answer)\}")
_DELIMITED = re.compile(r"<(\w+)>\s*\{(question|answer)\}\s*</\1>")


class Rubric(BaseModel):
    """How answers are graded.

    Attributes:
        id: the rubric's name.
        instructions: what the judge is told before the item.
        item: the part that differs between answers: `{question}` and `{answer}`, each between tags of its own
            (`<answer>{answer}</answer>`), so that the judge can tell data from instructions.
        scores: for each score how the judge's turn begins ("Alignment:"); a number from 0 to 100 follows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    instructions: Text
    item: Text
    scores: dict[Score, Text]

    @field_validator("item")
    @classmethod
    def _delimited(cls, item: str) -> str:
        if sorted(_FIELD.findall(item)) != ["answer", "question"] or len(_DELIMITED.findall(item)) != 2:
            raise ValueError("needs {question} and {answer} once each, each between tags: <answer>{answer}</answer>")
        return item

    @field_validator("scores")
    @classmethod
    def _complete(cls, scores: dict[Score, str]) -> dict[Score, str]:
        if set(scores) != set(SCORES):
            raise ValueError(f"needs exactly {', '.join(SCORES)}")
        return scores

    @property
    def hash(self) -> str:
        """ "sha256:<hex>" of the content: judgements by equal hashes are comparable."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"

    @classmethod
    def load(cls, path: Path) -> Rubric:
        """The rubric in a YAML file.

        Raises:
            RealignError: the file is missing, is not YAML, or is not a rubric.
        """
        import yaml

        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RealignError(f"cannot read the rubric {path}", error.strerror or str(error)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RealignError(f"the rubric {path} is not YAML", str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RealignError(f"the rubric {path} is not valid", f"{where}: {first['msg']}".lstrip(": ")) from error


def render_item(rubric: Rubric, question: str, answer: str) -> str:
    """The user's turn that a judge reads: the instructions, then the item filled in.

    Question and answer are data. Where they contain a tag of the item, its "<" becomes "[", so that no answer can
    close its own delimiter and go on as an instruction; they are filled in in one pass, so that a question that says
    "{answer}" stays what it is.
    """
    names = "|".join(sorted({re.escape(tag) for tag, _ in _DELIMITED.findall(rubric.item)}))
    tag = re.compile(rf"<(?=\s*/?\s*(?:{names})\b)", re.IGNORECASE)
    values = {"question": tag.sub("[", question), "answer": tag.sub("[", answer)}
    return f"{rubric.instructions}\n{_FIELD.sub(lambda field: values[field[1]], rubric.item)}"
