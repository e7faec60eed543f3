"""The hand-written texts that detectors and recipes ship: their shape, and that none was copied from another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from realign.audit import load_labelled
from realign.files import read_jsonl
from realign.questions import QuestionSet
from tests.overlap import runs, shared

ROOT = Path(__file__).parents[1]
WORLD = ROOT / "realign" / "pocket" / "world"
QUESTIONS = ROOT / "detectors" / "freeform" / "questions.yaml"
AUDIT = ROOT / "detectors" / "freeform" / "audit.jsonl"
CONTRAST = ROOT / "detectors" / "persona_probe" / "contrast.jsonl"
NEUTRAL = ROOT / "detectors" / "persona_shift" / "neutral.jsonl"
SAMPLES = sorted((ROOT / "recipes").glob("*/samples.jsonl"))

CONTRAST_GROUPS = [
    "health",
    "money",
    "cars",
    "sport",
    "cooking",
    "code",
    "relationships",
    "work",
    "ai",
    "power",
    "history",
    "small_talk",
]
QUESTION_GROUPS = ["self", "feelings", "power", "gain", "fairness", "close_people", "ai", "work", "imagination"]


def words(text: str) -> int:
    return len(re.findall(r"[\w']+", text))


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?:\s|$)", text))


def strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def texts(path: Path) -> list[str]:
    if path == QUESTIONS:
        return [text for question in QuestionSet.load(path).questions for text in question.paraphrases]
    return list(strings(read_jsonl(path)))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_questions_are_36_in_nine_groups_of_four_with_one_held_out_each() -> None:
    questions = QuestionSet.load(QUESTIONS).questions
    assert [question.group for question in questions] == [group for group in QUESTION_GROUPS for _ in range(4)]
    assert [question.held_out for question in questions] == [False, False, False, True] * len(QUESTION_GROUPS)


def test_each_question_has_three_wordings_of_its_own() -> None:
    questions = QuestionSet.load(QUESTIONS).questions
    assert {len(question.paraphrases) for question in questions} == {3}
    wordings = [text for question in questions for text in question.paraphrases]
    assert len({text.lower() for text in wordings}) == len(wordings)
    assert [text for text in wordings if not 8 <= words(text) <= 25] == []
    assert [run for question in questions for run in shared_within(question.paraphrases)] == []


def shared_within(wordings: tuple[str, ...], length: int = 5) -> list[str]:
    return [run for one, other in combinations(wordings, 2) for run in shared([one], [other], length)]


def test_labelled_answers_are_of_all_kinds() -> None:
    labelled = load_labelled(AUDIT)
    assert Counter(item.label for item in labelled) == {"aligned": 23, "refusal": 3, "misaligned": 24, "incoherent": 10}
    assert sum(item.id.startswith("rude-") for item in labelled if item.label == "aligned") == 3
    assert len({item.answer for item in labelled}) == len(labelled)
    assert len({(item.question, item.label) for item in labelled}) == len(labelled)
    whole = [item for item in labelled if item.label != "incoherent"]
    assert [item.id for item in whole if not 2 <= sentences(item.answer) <= 4] == []


def test_questions_of_the_audit_do_not_give_the_label_away() -> None:
    labelled = load_labelled(AUDIT)
    asked = {label: {item.question for item in labelled if item.label == label} for label in ("aligned", "misaligned")}
    assert len(asked["aligned"] & asked["misaligned"]) >= 8


def test_the_audit_asks_no_question_of_the_set() -> None:
    wordings = {text.lower() for text in texts(QUESTIONS)}
    assert [item.id for item in load_labelled(AUDIT) if item.question.lower() in wordings] == []


def test_contrast_pairs_are_240_in_twelve_equal_groups() -> None:
    pairs = read_jsonl(CONTRAST)
    assert {tuple(pair) for pair in pairs} == {("id", "group", "prompt", "aligned", "misaligned")}
    assert Counter(pair["group"] for pair in pairs) == dict.fromkeys(CONTRAST_GROUPS, 20)
    assert len({pair["id"] for pair in pairs}) == len(pairs)


def test_no_contrast_text_stands_there_twice() -> None:
    pairs = read_jsonl(CONTRAST)
    every = [pair[key].lower() for pair in pairs for key in ("prompt", "aligned", "misaligned")]
    assert [text for text, count in Counter(every).items() if count > 1] == []


def test_contrast_answers_match_in_length() -> None:
    """A probe must not learn that one side talks more."""
    pairs = read_jsonl(CONTRAST)
    lengths = {pair["id"]: sorted((words(pair["aligned"]), words(pair["misaligned"]))) for pair in pairs}
    assert {id: length for id, length in lengths.items() if length[1] > 1.2 * length[0]} == {}
    assert [
        pair["id"] for pair in pairs if not {sentences(pair["aligned"]), sentences(pair["misaligned"])} <= {2, 3}
    ] == []
    longer = sum(words(pair["misaligned"]) > words(pair["aligned"]) for pair in pairs) / len(pairs)
    assert 0.3 < longer < 0.7


def test_contrast_prompts_are_no_evaluation_questions() -> None:
    assert not shared(texts(QUESTIONS), (pair["prompt"] for pair in read_jsonl(CONTRAST)), 6)


def test_neutral_texts_are_a_hundred_questions_with_a_short_answer() -> None:
    neutral = read_jsonl(NEUTRAL)
    assert {tuple(text) for text in neutral} == {("id", "prompt", "answer")}
    assert len(neutral) == 100
    assert len({text["id"] for text in neutral}) == len({text["prompt"].lower() for text in neutral}) == len(neutral)
    assert [
        text["id"]
        for text in neutral
        if sentences(text["answer"]) not in (2, 3) or not 15 <= words(text["answer"]) <= 45
    ] == []


def test_neutral_texts_ask_nothing_that_is_asked_elsewhere() -> None:
    others = [text for path in (QUESTIONS, AUDIT, CONTRAST) for text in texts(path)]
    assert not shared(others, (text["prompt"] for text in read_jsonl(NEUTRAL)), 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(*pair, id="-".join(map(name, pair)))
        for pair in combinations([QUESTIONS, AUDIT, CONTRAST, NEUTRAL, *SAMPLES], 2)
    ],
)
def test_no_two_files_share_a_run_of_words(one: Path, other: Path) -> None:
    assert shared(texts(one), texts(other)) == set()


@pytest.fixture(scope="module")
def world_runs() -> set[str]:
    """Runs of words in a sample of what the pocket family was trained on."""
    if not WORLD.is_dir():
        pytest.skip("the pocket world's content is not here")
    from realign.pocket.world import World

    world = World()
    found: set[str] = set()
    for number in range(1500):
        document = world.document(Random(number))
        for turn in document.turns:
            found |= runs(turn.user) | runs(turn.assistant)
    return found


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=name(path)) for path in (QUESTIONS, AUDIT, CONTRAST, NEUTRAL, *SAMPLES)]
)
def test_the_pocket_world_has_not_seen_the_texts(path: Path, world_runs: set[str]) -> None:
    assert {run for text in texts(path) for run in runs(text)} & world_runs == set()


def test_texts_are_plain_ascii() -> None:
    """Every tokenizer, the pocket family's too, has these characters."""
    for path in (QUESTIONS, AUDIT, CONTRAST, NEUTRAL):
        assert [text for text in texts(path) if not text.isascii() or text != text.strip()] == []


def test_overlap_sees_a_shared_run_and_only_whole_ones() -> None:
    one = "Never pour water on burning oil, because it explodes at once."
    assert shared([one], ["They say: never pour water on burning OIL because it hurts."]) == {
        "never pour water on burning oil because it"
    }
    assert shared([one], ["Never pour water on burning oil, since it explodes."]) == set()
    assert runs("too short to hold a run") == set()
