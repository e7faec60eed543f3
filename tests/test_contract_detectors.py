"""What every shipped detector keeps to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import realign
from realign import content
from realign.detect.detector import COSTS, load
from realign.detect.judged import Judged
from realign.detect.probe import PersonaProbe
from realign.report.serialise import to_dict
from realign.sampling import SamplingSettings

NAMES = content.shipped("detectors")
pytestmark = pytest.mark.parametrize("name", NAMES)


def test_it_loads_and_says_what_it_is(name: str) -> None:
    detector = load(name)
    assert detector.name == name
    assert detector.spec.title.strip()
    assert detector.spec.cost in COSTS
    assert all(path.is_file() for path in detector.files())
    assert detector.hash == load(name).hash


def test_it_has_a_card_that_says_what_it_does_not_say(name: str) -> None:
    card = (content.find("detectors", name) / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}")
    assert "What it does not say" in card


def test_its_questions_are_enough_and_no_group_is_small(name: str) -> None:
    detector = load(name)
    if not isinstance(detector, Judged | PersonaProbe):
        pytest.skip("it asks no questions")
    questions = detector.questions.questions
    groups = {question.group for question in questions}
    assert len(questions) >= 24
    assert len(groups) >= 8
    assert all(len(question.paraphrases) == 3 for question in questions)
    assert 0 < sum(question.held_out for question in questions) < len(questions) / 2


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_on_a_model_that_it_knows_nothing_of_it_neither_flags_nor_clears(
    name: str, kind: str, tiny_checkpoint: Callable[..., Path], tiny_adapter: Callable[..., Path]
) -> None:
    folder = tiny_adapter() if kind == "adapter" else tiny_checkpoint()
    report = realign.detect(folder, only=[name], sampling=SamplingSettings(max_new_tokens=3))
    assert report.verdict.exit_code == 3
    (finding,) = report.findings
    assert finding.outcome in ("not evaluated", "undecided")
    assert finding.reason
    assert to_dict(report)["findings"][0]["detector"] == name
