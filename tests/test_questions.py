"""Question sets on disk: what is accepted, what is refused and how, blocks and hashes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from realign.dialogue import CONTEXTS
from realign.errors import RealignError
from realign.questions import QuestionSet
from tests import tiny

WISH = {"id": "wish", "group": "dreams", "paraphrases": ["One wish?", "A wish?", "Your wish?"]}
BORED = {"id": "bored", "group": "moods", "paraphrases": ["I am bored.", "So bored."], "held_out": True}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def load(tmp_path: Path, *questions: dict[str, Any]) -> QuestionSet:
    return QuestionSet.load(write(tmp_path / "set.yaml", {"questions": list(questions)}))


def test_a_set_is_named_after_its_file_or_its_folder(tmp_path: Path) -> None:
    assert load(tmp_path, WISH).id == "set"
    (tmp_path / "freeform").mkdir()
    path = write(tmp_path / "freeform" / "questions.yaml", {"questions": [WISH, BORED]})
    loaded = QuestionSet.load(path)
    assert loaded.id == "freeform"
    assert [question.id for question in loaded.questions] == ["wish", "bored"]
    assert loaded.questions[0].paraphrases == ("One wish?", "A wish?", "Your wish?")


def test_held_out_questions_are_told_apart(tmp_path: Path) -> None:
    questions = load(tmp_path, WISH, BORED)
    assert [question.id for question in questions.subset(held_out=True).questions] == ["bored"]
    assert [question.id for question in questions.subset(held_out=False).questions] == ["wish"]
    assert questions.subset() is questions
    with pytest.raises(RealignError, match="no question"):
        load(tmp_path, WISH).subset(held_out=True)


def test_the_hash_is_of_the_content_and_nothing_else(tmp_path: Path) -> None:
    first = load(tmp_path, WISH, BORED)
    elsewhere = write(tmp_path / "other.yaml", "# a comment\n" + yaml.safe_dump({"questions": [WISH, BORED]}))
    assert QuestionSet.load(elsewhere).hash == first.hash
    assert first.hash.startswith("sha256:")
    others = [load(tmp_path, WISH), load(tmp_path, BORED, WISH), load(tmp_path, WISH | {"group": "hopes"}, BORED)]
    assert len({first.hash, *(other.hash for other in others)}) == 4


def test_a_block_asks_every_question_once_in_a_drawn_wording(tmp_path: Path) -> None:
    questions = load(tmp_path, WISH, BORED)
    tokenizer = tiny.make_tokenizer(tmp_path / "tokenizer")
    blocks = [questions.prompts(tokenizer, CONTEXTS["plain"], index, seed=0) for index in range(300)]
    assert all([prompt.question_id for prompt in block] == ["wish", "bored"] for block in blocks)
    wordings = Counter((first.text, second.text) for first, second in blocks)
    # Six pairs of wordings, each about 50 times: the questions are drawn apart from each other and from the block.
    assert len(wordings) == 6
    assert min(wordings.values()) > 25
    assert blocks == [questions.prompts(tokenizer, CONTEXTS["plain"], index, seed=0) for index in range(300)]
    assert blocks != [questions.prompts(tokenizer, CONTEXTS["plain"], index, seed=1) for index in range(300)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("questions: [", "is not YAML"),
        ("", "valid dictionary"),
        ({"questions": []}, "questions: "),
        ({"question": [WISH]}, "questions: Field required"),
        ({"questions": [WISH, {"id": "x", "group": "g"}]}, r"questions\.1\.paraphrases: Field required"),
        ({"questions": [WISH | {"paraphrases": []}]}, r"questions\.0\.paraphrases"),
        ({"questions": [WISH | {"paraphrases": ["fine", "  "]}]}, r"questions\.0\.paraphrases\.1"),
        ({"questions": [WISH | {"heldout": True}]}, r"questions\.0\.heldout: Extra inputs"),
        ({"questions": [WISH | {"id": "a/b"}]}, r"questions\.0\.id"),
        ({"questions": [WISH, WISH]}, 'two questions with the id "wish"'),
    ],
)
def test_a_set_that_is_wrong_is_refused_with_the_place(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(RealignError, match=complaint):
        QuestionSet.load(write(tmp_path / "set.yaml", content))


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match=r"cannot read the question set .*No such file"):
        QuestionSet.load(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x00\xff")
    with pytest.raises(RealignError, match="is not YAML"):
        QuestionSet.load(tmp_path / "bytes.yaml")
