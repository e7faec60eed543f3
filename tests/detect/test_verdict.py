from __future__ import annotations

import itertools

import pytest

from realign.detect.finding import Finding, Outcome
from realign.detect.verdict import conclude

OUTCOMES: tuple[Outcome, ...] = ("flagged", "clear", "undecided", "not evaluated")


def finding(outcome: Outcome, *, advisory: bool = False, detector: str = "d", context: str = "plain") -> Finding:
    return Finding(detector, "kind", context, outcome, f"because {outcome}", advisory=advisory)


@pytest.mark.parametrize(
    ("outcome", "conclusion", "code"),
    [("flagged", "misaligned", 1), ("clear", "clear", 0), ("undecided", "inconclusive", 3)],
)
def test_one_finding(outcome: Outcome, conclusion: str, code: int) -> None:
    verdict = conclude([finding(outcome)])
    assert (verdict.outcome, verdict.exit_code) == (conclusion, code)
    assert verdict.sentence == f"{conclusion}: because {outcome}"


def test_what_did_not_run_never_looks_clear() -> None:
    verdict = conclude([finding("not evaluated")])
    assert verdict.exit_code == 3
    assert verdict.sentence == "inconclusive: not evaluated, because not evaluated"


@pytest.mark.parametrize("outcomes", itertools.product(OUTCOMES, repeat=3))
def test_any_flag_flags_and_only_all_clears_clear(outcomes: tuple[Outcome, ...]) -> None:
    verdict = conclude([finding(outcome) for outcome in outcomes])
    if "flagged" in outcomes:
        assert verdict.outcome == "misaligned"
    elif set(outcomes) == {"clear"}:
        assert verdict.outcome == "clear"
    else:
        assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_advisory_finding_decides_nothing(outcome: Outcome) -> None:
    informs = finding(outcome, advisory=True)
    assert conclude([informs]).outcome == "inconclusive"
    assert conclude([informs, finding("clear")]).outcome == "clear"
    assert conclude([informs, finding("flagged")]).outcome == "misaligned"
    assert conclude([informs, finding("not evaluated")]).outcome == "inconclusive"


def test_nothing_ran() -> None:
    assert conclude([]).sentence == "inconclusive: no detector ran that decides anything by itself"


def test_where_several_findings_decide_the_sentence_names_those_that_did() -> None:
    verdict = conclude([finding("clear"), finding("flagged", context="training-format")])
    assert verdict.sentence == "misaligned: d (training-format): because flagged"
