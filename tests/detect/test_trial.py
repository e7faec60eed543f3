from __future__ import annotations

import numpy as np
import pytest

from realign.detect.trial import Tally, Trial
from realign.judging import Judgement

QUESTIONS = [f"q{number}" for number in range(20)]


def judgement(alignment: float | None = 90.0, coherence: float | None = 95.0, refusal: float | None = 0.0) -> Judgement:
    return Judgement("id", "answer", "judge", "rubric", alignment, coherence, refusal, 1.0, "")


GOOD = judgement()
BAD = judgement(alignment=5.0)
GARBLED = judgement(alignment=5.0, coherence=10.0)
UNSCORED = judgement(None, None, None)
HALF_SCORED = judgement(alignment=None)
REFUSAL = judgement(refusal=90.0)


def block(*first: Judgement, rest: Judgement = GOOD) -> list[Judgement]:
    return [*first, *[rest] * (len(QUESTIONS) - len(first))]


def test_a_tally_keeps_all_denominators() -> None:
    tally = Tally().plus([GOOD, BAD, GARBLED, UNSCORED, HALF_SCORED]).plus([REFUSAL])
    assert tally == Tally(answers=6, scored=4, coherent=3, misaligned=1, refusals=1)
    assert tally.rate == 1 / 3
    assert tally.coherent_share == 1 / 2


def test_an_empty_tally_has_no_rates() -> None:
    assert Tally().rate is None
    assert Tally().coherent_share is None
    assert Tally().plus([GARBLED]).rate is None


def test_misaligned_answers_flag() -> None:
    trial = Trial(0.02, 0.05, paired=False)
    trial.add(QUESTIONS, block(*[BAD] * 8), None)
    assert trial.decision == "flag"
    assert trial.checkpoint.rate == 0.4
    assert trial.interval.low > 0.02


def test_with_a_reference_only_the_excess_flags() -> None:
    alone, paired = Trial(0.02, 0.05, paired=False), Trial(0.02, 0.05, paired=True)
    for _ in range(3):
        alone.add(QUESTIONS, block(*[BAD] * 6), None)
        paired.add(QUESTIONS, block(*[BAD] * 6), block(*[BAD] * 6))
    assert alone.decision == "flag"
    assert paired.decision is None
    assert paired.rates().excess == 0


def test_good_answers_clear_once_there_are_enough() -> None:
    trial = Trial(0.05, 0.05, paired=False)
    needed = 0
    while trial.decision is None and needed < 100:
        trial.add(QUESTIONS, block(), None)
        needed += 1
    assert trial.decision == "clear"
    assert 60 <= trial.checkpoint.answers <= 100  # ln(20) / 0.05 = 60 is the least that could do


@pytest.mark.parametrize("senseless", [GARBLED, UNSCORED, HALF_SCORED], ids=["garbled", "unscored", "half scored"])
def test_senseless_answers_are_no_evidence_of_health(senseless: Judgement) -> None:
    trial = Trial(0.05, 0.05, paired=False)
    for _ in range(20):
        trial.add(QUESTIONS, block(rest=senseless), None)
    assert trial.decision is None
    assert trial.broken
    assert trial.checkpoint.rate is None
    assert trial.interval == (0, 1)
    assert trial.rates().other_questions is None


def test_not_broken_before_the_evidence_would_clear() -> None:
    trial = Trial(0.05, 0.05, paired=False)
    trial.add(QUESTIONS, block(rest=GARBLED), None)
    assert not trial.broken


def test_a_checkpoint_that_lost_a_fifth_of_its_references_coherence_is_broken() -> None:
    trial = Trial(0.05, 0.05, paired=True)
    for _ in range(20):
        trial.add(QUESTIONS, block(*[GARBLED] * 5), block())
    assert trial.broken
    assert trial.decision is None


def test_the_expected_end() -> None:
    trial = Trial(0.05, 0.05, paired=False)
    assert trial.expected(2000) == 2000
    trial.add(QUESTIONS, block(), None)
    soon = trial.expected(2000)
    assert 40 < soon < 200
    assert trial.expected(30) == 30
    trial.add(QUESTIONS, block(*[BAD] * 10), None)
    assert trial.decision == "flag"
    assert trial.expected(2000) == 40


def test_rates_hold_everything() -> None:
    trial = Trial(0.02, 0.05, paired=True)
    trial.add(QUESTIONS, block(*[BAD] * 8), block(BAD))
    rates = trial.rates()
    assert rates.checkpoint.misaligned == 8
    assert rates.reference is not None
    assert rates.reference.misaligned == 1
    assert rates.excess == pytest.approx(7 / 20)
    assert rates.excess_interval is not None
    assert rates.excess_interval[0] <= 7 / 20 <= rates.excess_interval[1]
    assert rates.other_questions is not None
    assert rates.other_questions[0] < 0.4 < rates.other_questions[1]
    assert rates.e_flag >= 20 > rates.e_clear


def test_the_interval_covers_the_rate_among_coherent_answers() -> None:
    """Questions differ widely in how often answers are coherent and misaligned, and the two go together."""
    rng = np.random.default_rng(0)
    coherent = rng.uniform(0.2, 1.0, len(QUESTIONS))
    misaligned = coherent * (coherent < 0.6) * 0.7
    truth = misaligned.sum() / coherent.sum()
    runs, covered = 200, 0
    for _ in range(runs):
        trial = Trial(0.3, 0.05, paired=False)
        for _ in range(5):
            draws = rng.uniform(size=len(QUESTIONS))
            answers = [
                BAD if draw < bad else GOOD if draw < sense else GARBLED
                for draw, bad, sense in zip(draws, misaligned, coherent, strict=True)
            ]
            trial.add(QUESTIONS, answers, None)
        covered += trial.interval.low <= truth <= trial.interval.high
    assert covered >= 0.95 * runs - 3 * (runs * 0.95 * 0.05) ** 0.5
    assert trial.interval.high - trial.interval.low < 0.5  # it says something
