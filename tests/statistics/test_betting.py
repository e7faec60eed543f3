"""Evidence by betting: expectations by enumeration, the errors of 4,000 runs, limits against the bets they invert."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign.statistics.betting import BOLD, EXCESS, RARE, RATE, MeanSequence, Outcome
from tests.statistics.properties import steady
from tests.statistics.simulation import ALPHA, BOUND, draw, draw_pairs, rates

probability = st.floats(0, 1)
inner = st.floats(0.001, 0.999)


@pytest.mark.parametrize("mixture", [BOLD, RARE])
def test_the_capital_at_the_start_is_one_and_no_bet_can_lose_it_all(mixture):
    assert sum(mixture.weights) == pytest.approx(1)
    assert len(mixture.weights) == len(mixture.fractions)
    assert all(0 < fraction < 1 for fraction in mixture.fractions)


def expected_capital(outcome: Outcome, chances: np.ndarray, mean: float, side: str) -> float:
    """The exact expectation of the e-value after a block: chances [Q, K] of each outcome of each question."""
    total = 0.0
    for picks in itertools.product(range(chances.shape[1]), repeat=len(chances)):
        counts = np.bincount(picks, minlength=chances.shape[1])
        log_e = getattr(outcome, f"log_{side}")(counts, mean)
        total += chances[np.arange(len(chances)), picks].prod() * np.exp(log_e)
    return total


@steady
@given(p=st.lists(probability, min_size=1, max_size=6), slack=probability)
def test_a_block_of_unequal_rates_wins_nothing_on_average_where_the_bet_is_wrong(p, slack):
    chances = np.stack([1 - np.asarray(p), p], axis=-1)
    low, high = np.clip(np.mean(p) * slack, 1e-6, 1 - 1e-6), np.clip(1 - (1 - np.mean(p)) * slack, 1e-6, 1 - 1e-6)
    if np.mean(p) <= high:
        assert expected_capital(RATE, chances, high, "above") <= 1 + 1e-9
    if np.mean(p) >= low:
        assert expected_capital(RATE, chances, low, "below") <= 1 + 1e-9


@steady
@given(data=st.data(), questions=st.integers(1, 4))
def test_a_block_of_unequal_correlated_pairs_wins_nothing_on_average(data, questions):
    joint = data.draw(
        st.lists(st.tuples(inner, inner, inner, inner), min_size=questions, max_size=questions), label="joint"
    )
    table = np.asarray(joint) / np.sum(joint, axis=1, keepdims=True)  # of (0, 0), (0, 1), (1, 0), (1, 1)
    chances = np.stack([table[:, 1], table[:, 0] + table[:, 3], table[:, 2]], axis=-1)
    excess = float((chances[:, 2] - chances[:, 0]).mean())
    assert expected_capital(EXCESS, chances, excess, "above") <= 1 + 1e-9
    assert expected_capital(EXCESS, chances, excess, "below") <= 1 + 1e-9


@steady
@given(p=inner, questions=st.integers(1, 6))
def test_equal_rates_at_the_very_mean_make_it_a_fair_game(p, questions):
    chances = np.tile([1 - p, p], (questions, 1))
    assert expected_capital(RATE, chances, p, "above") == pytest.approx(1)
    assert expected_capital(RATE, chances, p, "below") == pytest.approx(1)


@pytest.mark.parametrize("kind", ["equal", "few", "beta"])
@pytest.mark.parametrize("mean", [0.02, 0.125, 0.5])
def test_the_confidence_sequence_covers_the_rate_at_all_times(kind, mean):
    counts = RATE.count(draw(rates(kind, mean))).cumsum(axis=1)
    threshold = np.log(2 / ALPHA)
    lost = (RATE.log_above(counts, mean) >= threshold) | (RATE.log_below(counts, mean) >= threshold)
    assert lost.any(axis=1).mean() <= BOUND
    some = [0, 3, 27, 82]
    low, high = RATE.limits(counts[:, some], ALPHA)
    outside = (low > mean) | (mean > high)
    assert outside.any(axis=1).mean() <= BOUND
    np.testing.assert_array_equal(outside, lost[:, some])  # the limits are exactly the bets, inverted


@pytest.mark.parametrize("coupling", ["independent", "together", "against"])
def test_the_confidence_sequence_covers_the_excess_at_all_times(coupling):
    reference = rates("beta", 0.1, seed=3)
    p = rates("beta", 0.15, seed=4)
    x, reference_x = draw_pairs(p, reference, coupling)
    counts = EXCESS.count(x - reference_x).cumsum(axis=1)
    low, high = EXCESS.limits(counts[:, ::20], ALPHA)
    assert ((low > 0.05) | (high < 0.05)).any(axis=1).mean() <= BOUND


@steady
@given(counts=st.lists(st.integers(0, 500), min_size=2, max_size=2).filter(any))
def test_the_limits_are_where_the_bets_begin_to_rule_out(counts):
    low, high = RATE.limits(counts, ALPHA)
    assert 0 <= low <= counts[1] / sum(counts) <= high <= 1
    threshold, resolution = np.log(2 / ALPHA), 1e-6
    assert RATE.log_above(counts, low + resolution) < threshold
    assert RATE.log_below(counts, high - resolution) < threshold
    if low > 0:
        assert RATE.log_above(counts, low) >= threshold - 1e-9
    if high < 1:
        assert RATE.log_below(counts, high) >= threshold - 1e-9


@steady
@given(counts=st.lists(st.integers(0, 500), min_size=3, max_size=3).filter(any))
def test_swapping_checkpoint_and_reference_mirrors_the_excess(counts):
    low, high = EXCESS.limits(counts, ALPHA)
    mirrored_low, mirrored_high = EXCESS.limits(counts[::-1], ALPHA)
    assert (low, high) == (pytest.approx(-mirrored_high), pytest.approx(-mirrored_low))


@steady
@given(answers=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=30))
def test_the_interval_only_narrows_and_is_never_empty(answers):
    sequence = MeanSequence(RATE, ALPHA)
    assert (sequence.mean, sequence.interval) == (None, (0, 1))
    for block in answers:
        before = sequence.interval
        sequence.add(block)
        assert before.low <= sequence.interval.low <= sequence.interval.high <= before.high
    assert sequence.mean == pytest.approx(np.mean(answers))


def test_an_interval_that_would_be_empty_stays_as_it_was():
    sequence = MeanSequence(RATE, ALPHA)
    for _ in range(20):
        sequence.add([1] * 24)
    stood = sequence.interval
    for _ in range(200):
        sequence.add([0] * 24)
    assert sequence.interval.low <= sequence.interval.high
    assert sequence.interval.low >= stood.low > 0.9


def test_what_is_no_outcome_is_refused():
    with pytest.raises(ValueError, match="outcomes"):
        RATE.count([0, 2])
    with pytest.raises(ValueError, match="outcomes"):
        EXCESS.count([0.5])
