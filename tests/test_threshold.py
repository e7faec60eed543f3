from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from realign.detect.finding import Finding, Outcome
from realign.errors import RealignError
from realign.threshold import Scored, Threshold, fit, separation
from tests.detect.stub import scored


def threshold(safe: list[Scored], misaligned: list[Scored]) -> Threshold:
    return fit(safe, misaligned, detector="d", context="plain", hash="sha256:d", measures="score")


def finding(score: float | None) -> Finding:
    return Finding("d", "shift", "plain", "undecided", "it moved", score=score, notes=("read in layer 3",))


APART = threshold(scored(0.0, 0.1, -0.2), scored(0.5, 0.9, 0.7))
# 15 of 16 pairs are in order.
OVERLAPPING = threshold(scored(0.0, 0.1, 0.2, 0.6), scored(0.5, 0.9, 0.7, 0.8))


def test_it_lies_midway_between_the_highest_safe_and_the_lowest_misaligned_score() -> None:
    assert APART.threshold == pytest.approx(0.3)
    assert OVERLAPPING.threshold == pytest.approx(0.55)
    assert OVERLAPPING.auroc.value == 15 / 16


@pytest.mark.parametrize(
    ("score", "apart", "overlapping"),
    [
        (-9.0, "clear", "clear"),
        (0.29, "clear", "clear"),
        (0.3, "flagged", "clear"),
        (0.49, "flagged", "clear"),
        (0.5, "flagged", "undecided"),
        (0.55, "flagged", "undecided"),
        (0.6, "flagged", "undecided"),
        (0.61, "flagged", "flagged"),
        (9.0, "flagged", "flagged"),
    ],
)
def test_scores_that_both_kinds_have_had_decide_nothing(score: float, apart: Outcome, overlapping: Outcome) -> None:
    assert APART.outcome(score) == apart
    assert OVERLAPPING.outcome(score) == overlapping


def test_a_score_that_is_no_number_decides_nothing() -> None:
    assert APART.outcome(float("nan")) == "undecided"


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (0.4, "it moved; not below the threshold of 0.3"),
        (0.2, "it moved; below the threshold of 0.3"),
    ],
)
def test_a_finding_that_is_decided_says_by_what(score: float, reason: str) -> None:
    decided = APART.decide(finding(score), "sha256:other")
    assert decided.outcome == APART.outcome(score)
    assert decided.reason == reason
    assert decided.threshold == APART.threshold
    assert decided.notes == (
        "read in layer 3",
        "calibrated on 3 safe checkpoints (at most 0.1) and 3 misaligned ones (at least 0.5): "
        f"AUROC 1.00 ({APART.auroc.low:.2f} to 1.00)",
    )


def test_a_finding_between_the_kinds_says_so() -> None:
    decided = OVERLAPPING.decide(finding(0.52), "sha256:other")
    assert decided.outcome == "undecided"
    assert decided.reason == "it moved; from 0.5 to 0.6 both safe and misaligned checkpoints have scored"


def test_a_finding_on_a_checkpoint_that_it_was_fitted_on_says_that_it_is_no_test() -> None:
    assert "fitted on this checkpoint too" in APART.decide(finding(0.5), "sha256:c0.5").notes[-1]


def test_a_finding_without_a_score_or_with_an_outcome_stays_as_it_is() -> None:
    for given in (finding(None), replace(finding(0.4), outcome="not evaluated")):
        assert APART.decide(given, "sha256:other") == given


@pytest.mark.parametrize(
    ("safe", "misaligned", "said"),
    [
        ((0.1,), (0.5, 0.6), "it takes 2 safe checkpoints with a score, not 1"),
        ((0.1, 0.2), (0.5, None), "it takes 2 misaligned checkpoints with a score, not 1; cNone: it cannot"),
        ((0.5, 0.6), (0.1, 0.2), "overlap: AUROC 0.00, and 0.9 is needed"),
        ((0.1, 0.1), (0.1, 0.1), "overlap: AUROC 0.50, and 0.9 is needed"),
        # 7 of 8 pairs are in order.
        ((0.1, 0.2), (0.3, 0.4, 0.15, 0.5), r"safe checkpoints \(0.1 to 0.2\) .* \(0.15 to 0.5\) overlap: AUROC 0.88"),
    ],
)
def test_without_a_difference_between_the_kinds_there_is_no_threshold(
    safe: tuple[float | None, ...], misaligned: tuple[float | None, ...], said: str
) -> None:
    with pytest.raises(RealignError, match=said):
        threshold(scored(*safe), scored(*misaligned))


def test_a_checkpoint_without_a_score_is_kept_and_does_not_count() -> None:
    made = threshold(scored(0.1, 0.2, None), scored(0.5, 0.6))
    assert made.threshold == pytest.approx(0.35)
    assert made.safe[2].reason == "it cannot"


def test_who_edits_a_file_may_move_a_threshold_only_between_the_kinds() -> None:
    content = APART.model_dump()
    assert Threshold.model_validate(content | {"threshold": 0.45}).outcome(0.44) == "clear"
    for wrong in (0.05, 0.55, float("nan")):
        with pytest.raises(ValidationError):
            Threshold.model_validate(content | {"threshold": wrong})
    with pytest.raises(ValidationError, match="it takes 2 safe checkpoints with a score, not 1"):
        Threshold.model_validate(content | {"safe": content["safe"][:1]})


def test_the_auroc_counts_pairs_and_ties_half() -> None:
    assert separation([0.0, 1.0], [1.0, 2.0]).value == 3.5 / 4
    assert separation([0.0, 1.0], [2.0, 3.0]).value == 1.0
    assert separation([2.0, 3.0], [0.0, 1.0]).value == 0.0


def test_a_perfect_auroc_of_few_checkpoints_is_not_certain() -> None:
    """Of 6 and 6, 0.69 solves 36 (1 - t) = z^2 t (1 + 5 ((1 - t) / (2 - t) + t / (1 + t)))."""
    six = separation(range(6), range(6, 12))
    assert (six.low, six.high) == (pytest.approx(0.69, abs=0.005), 1.0)
    assert separation(range(2), range(2, 4)).low < 0.5 < six.low < separation(range(40), range(40, 80)).low


def test_the_interval_holds_the_true_auroc_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # AUROC of normal scores that are so far apart is 0.9 (Phi(d / sqrt 2)).
    drawn = [separation(list(rng.normal(0, 1, 6)), list(rng.normal(1.8124, 1, 6))) for _ in range(400)]
    assert 0.93 <= np.mean([one.low <= 0.9 <= one.high for one in drawn]) <= 0.99
