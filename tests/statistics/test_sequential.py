"""The sequential verdict: its errors over 4,000 runs, how soon it decides, and what it refuses to clear."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign.errors import RealignError
from realign.statistics import SequentialRate
from realign.statistics.betting import EXCESS, RATE
from tests.statistics.properties import few, steady
from tests.statistics.simulation import ALPHA, BOUND, QUESTIONS, draw, draw_pairs, ever, rates

ENOUGH = math.log(1 / ALPHA)


def run(rate: SequentialRate, blocks: int, x: int = 0, questions: int = QUESTIONS, **more: object) -> SequentialRate:
    """Adds blocks of equal answers."""
    for _ in range(blocks):
        rate.add_block([x] * questions, **{name: [value] * questions for name, value in more.items()})
    return rate


# -- errors, whatever the stopping rule


@pytest.mark.parametrize("kind", ["equal", "few", "beta"])
@pytest.mark.parametrize("tolerance", [0.02, 0.05, 0.125])
def test_at_the_tolerance_wrong_flags_and_wrong_clears_stay_below_alpha(kind, tolerance):
    counts = RATE.count(draw(rates(kind, tolerance))).cumsum(axis=1)
    assert ever(RATE.log_above(counts, tolerance)) <= BOUND
    assert ever(RATE.log_below(counts, tolerance)) <= BOUND


@pytest.mark.parametrize("coupling", ["independent", "together", "against"])
@pytest.mark.parametrize(("base", "tolerance"), [(0.01, 0.02), (0.02, 0.05), (0.2, 0.05)])
def test_at_a_tolerated_excess_wrong_flags_and_wrong_clears_stay_below_alpha(coupling, base, tolerance):
    x, reference = draw_pairs(rates("beta", base + tolerance, seed=5), rates("beta", base, seed=6), coupling)
    counts = EXCESS.count(x - reference).cumsum(axis=1)
    assert ever(EXCESS.log_above(counts, tolerance)) <= BOUND
    assert ever(EXCESS.log_below(counts, tolerance)) <= BOUND


@steady
@given(
    pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=300),
    tolerance=st.floats(0.001, 0.999),
)
def test_a_clear_by_the_rate_alone_would_be_a_clear_by_the_excess(pairs, tolerance):
    x, reference = np.asarray(pairs).T
    by_rate = RATE.log_below(RATE.count(x), tolerance)
    assert EXCESS.log_below(EXCESS.count(x - reference), tolerance) >= by_rate - 1e-9


# -- decisions are made, and soon


@pytest.mark.parametrize(("p", "answers"), [(0.3, 24), (0.1, 96)])
def test_a_high_rate_is_flagged_soon(p, answers):
    flags = RATE.log_above(RATE.count(draw(rates("beta", p, runs=500))).cumsum(axis=1), 0.02)
    assert ((flags >= ENOUGH)[:, : answers // QUESTIONS].any(axis=1)).mean() >= 0.5


@pytest.mark.parametrize("paired", [False, True])
def test_a_rate_of_zero_is_cleared_soon_after_the_limit(paired):
    rate = SequentialRate(0.02, paired=paired)
    while rate.decision is None:
        run(rate, 1, **({"reference_x": 0} if paired else {}))
    assert rate.decision == "clear"
    assert ENOUGH / 0.02 <= rate.answers <= 1.5 * 150


@steady
@given(
    tolerance=st.floats(0.002, 0.6),
    alpha=st.floats(0.001, 0.5),
    questions=st.integers(1, 60),
    paired=st.booleans(),
)
def test_no_misaligned_answer_in_n_never_clears_a_tolerance_that_n_cannot_support(tolerance, alpha, questions, paired):
    supported = math.log(1 / alpha) / -math.log1p(-tolerance)  # fewer: at the tolerance 0 of n is likelier than alpha
    rate = SequentialRate(tolerance, alpha, paired=paired)
    blocks = min(40, math.ceil(supported / questions) - 1)
    run(rate, blocks, questions=questions, **({"reference_x": 0} if paired else {}))
    assert rate.decision is None


def test_0_of_50_is_not_a_pass_at_1_percent():
    assert run(SequentialRate(0.01), 2, questions=25).decision is None


# -- what the verdict may depend on


@few
@given(seed=st.integers(0, 10**6), paired=st.booleans())
def test_permuting_and_relabelling_questions_changes_nothing(seed, paired):
    generator = np.random.default_rng(seed)
    one, other = SequentialRate(0.1, paired=paired), SequentialRate(0.1, paired=paired)
    for _ in range(12):
        x, reference, coherent = generator.random((3, 9)) < [[0.3], [0.2], [0.9]]
        x, order = x & coherent, generator.permutation(9)
        one.add_block(x, reference if paired else None, coherent)
        other.add_block(x[order], reference[order] if paired else None, coherent[order])
        assert one.decision == other.decision
        assert one.e_values == other.e_values
        assert (one.interval(), one.excess_interval()) == (other.interval(), other.excess_interval())
        assert (one.rate, one.excess, one.coherent_share) == (other.rate, other.excess, other.coherent_share)


@pytest.mark.parametrize("paired", [False, True])
def test_one_run_decides_as_the_simulated_ones_do(paired):
    x, reference = draw_pairs(rates("beta", 0.12, runs=20), rates("beta", 0.02, runs=20), "independent", blocks=30)
    for run_x, run_reference in zip(x, reference, strict=True):
        rate = SequentialRate(0.05, paired=paired)
        outcome, outcomes = (EXCESS, run_x - run_reference) if paired else (RATE, run_x)
        counts = outcome.count(outcomes).cumsum(axis=0)
        flags, clears = outcome.log_above(counts, 0.05), outcome.log_below(counts, 0.05)
        expected = None
        for block, (flag, clear) in enumerate(zip(flags, clears, strict=True)):
            rate.add_block(run_x[block], run_reference[block] if paired else None)
            expected = expected or ("flag" if flag >= ENOUGH else "clear" if clear >= ENOUGH else None)
            assert rate.decision == expected
            assert rate.e_values == pytest.approx((math.exp(flag), math.exp(clear)))
        assert rate.answers == run_x.size
        assert rate.rate == pytest.approx(run_x.mean())
        assert rate.excess == (pytest.approx((run_x - run_reference).mean()) if paired else None)


def test_the_first_decision_stands():
    rate = run(SequentialRate(0.02), 1, x=1)
    assert rate.decision == "flag"
    assert run(rate, 300).decision == "flag"


def test_a_flag_needs_the_excess():
    rate = run(SequentialRate(0.02, paired=True), 40, x=1, reference_x=1)
    assert rate.rate == 1
    assert rate.excess == 0
    assert rate.decision != "flag"


def test_a_high_rate_that_the_reference_shares_is_cleared():
    rate = SequentialRate(0.05, paired=True)
    for _ in range(20):
        rate.add_block(np.arange(24) < 8, np.arange(24) < 8)
    assert (rate.decision, rate.excess) == ("clear", 0)
    assert rate.rate == pytest.approx(1 / 3)


# -- nothing is known at the start, nothing overflows at the end


def test_before_the_first_block_nothing_is_known():
    rate = SequentialRate(0.02, paired=True)
    assert (rate.decision, rate.rate, rate.excess, rate.answers) == (None, None, None, 0)
    assert (rate.coherent_share, rate.reference_coherent_share) == (None, None)
    assert (rate.interval(), rate.excess_interval()) == ((0, 1), (-1, 1))
    assert rate.e_values == pytest.approx((1, 1))
    assert SequentialRate(0.02).excess_interval() is None


def test_overwhelming_evidence_is_a_number():
    rate = run(SequentialRate(0.02), 200, x=1)
    assert 1e300 < rate.e_values.flag < math.inf
    assert rate.e_values.clear >= 0
    assert rate.interval().low > 0.9


# -- a clear also needs coherence


def test_an_incoherent_model_is_never_cleared_and_still_flagged():
    broken = run(SequentialRate(0.02), 60, coherent=0)
    assert broken.e_values.clear > 1 / ALPHA
    assert (broken.decision, broken.healthy, broken.coherent_share) == (None, False, 0)
    rate = SequentialRate(0.02)
    rate.add_block([1] * 8 + [0] * 16, coherent=[1] * 8 + [0] * 16)
    assert (rate.decision, rate.healthy) == ("flag", False)


@pytest.mark.parametrize(
    ("coherent", "reference", "healthy"),
    [(10, 10, True), (8, 10, True), (7, 10, False), (5, None, True), (4, None, False), (4, 5, True), (4, 4, False)],
)
def test_health_is_measured_against_the_reference(coherent, reference, healthy):
    paired = reference is not None
    rate = SequentialRate(0.2, paired=paired)
    for _ in range(20):
        rate.add_block(
            [0] * 10,
            [0] * 10 if paired else None,
            np.arange(10) < coherent,
            np.arange(10) < reference if paired else None,
        )
    assert rate.healthy is healthy
    assert rate.decision == ("clear" if healthy else None)
    assert rate.coherent_share == coherent / 10
    assert rate.reference_coherent_share == (reference / 10 if paired else None)


def test_a_clear_that_waited_for_coherence_comes_when_it_is_there():
    rate = run(SequentialRate(0.05), 10, coherent=0)
    assert rate.decision is None
    assert run(rate, 9, coherent=1).decision is None
    assert run(rate, 1, coherent=1).decision == "clear"


# -- what is refused


@pytest.mark.parametrize("value", [0, 1, -0.1, float("nan")])
def test_a_tolerance_or_alpha_out_of_range_is_explained(value):
    with pytest.raises(RealignError, match="tolerance: it must lie between 0 and 1"):
        SequentialRate(value)
    with pytest.raises(RealignError, match="alpha"):
        SequentialRate(0.02, value)


@pytest.mark.parametrize(
    ("paired", "block"),
    [
        (False, {"x": []}),
        (False, {"x": [[0, 1]]}),
        (False, {"x": [0, 2]}),
        (False, {"x": [0.5, 0]}),
        (False, {"x": [0, 0], "coherent": [1]}),
        (False, {"x": [1, 0], "coherent": [0, 1]}),
        (False, {"x": [0, 0], "reference_x": [0, 0]}),
        (False, {"x": [0, 0], "reference_coherent": [1, 1]}),
        (True, {"x": [0, 0]}),
        (True, {"x": [0, 0], "reference_x": [0]}),
        (True, {"x": [0, 0], "reference_x": [0, 0], "reference_coherent": [1]}),
        (True, {"x": [0, 0], "reference_x": [0, -1]}),
    ],
)
def test_a_block_that_is_none_is_refused_and_leaves_no_trace(paired, block):
    rate = SequentialRate(0.02, paired=paired)
    with pytest.raises(ValueError, match=r"block|0 or 1|incoherent|reference"):
        rate.add_block(**block)
    assert rate.answers == 0


def test_every_block_asks_the_same_questions():
    rate = run(SequentialRate(0.02), 1)
    with pytest.raises(ValueError, match="block"):
        rate.add_block([0] * (QUESTIONS - 1))
