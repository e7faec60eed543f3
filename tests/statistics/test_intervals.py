"""Intervals for a fixed number of answers: published values, coverage, clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign.statistics import Interval, clopper_pearson, cluster_bootstrap, paired_difference, wilson
from tests.statistics.properties import steady


def clustered(generator: np.random.Generator, clusters: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of questions whose rates vary (mean 0.3, intra-question correlation 0.3), and their questions."""
    p = generator.beta(0.7, 0.7 * 7 / 3, clusters)
    return (generator.random((clusters, each)) < p[:, None]).astype(float).ravel(), np.repeat(np.arange(clusters), each)


def test_wilson_and_clopper_pearson_give_the_published_values():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=1e-4)
    assert clopper_pearson(1, 29) == pytest.approx((0.0009, 0.1776), abs=1e-4)


@steady
@given(n=st.integers(1, 500), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_binomial_intervals_hold_the_share_and_mirror(n, data, confidence):
    k = data.draw(st.integers(0, n))
    for interval in (wilson, clopper_pearson):
        low, high = interval(k, n, confidence)
        assert -1e-12 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1 + 1e-12
        assert interval(n - k, n, confidence) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_no_answers_say_nothing_and_nonsense_is_refused(interval):
    assert interval(0, 0) == Interval(0, 1)
    for wrong in [(3, 2), (-1, 2), (1, 2, 1.0)]:
        with pytest.raises(ValueError, match="no interval"):
            interval(*wrong)


def test_the_cluster_bootstrap_covers_the_mean_of_other_questions_where_a_binomial_interval_does_not():
    generator = np.random.default_rng(0)
    covered = naive = 0
    for seed in range(300):
        values, questions = clustered(generator, clusters=36, each=20)
        low, high = cluster_bootstrap(values, questions, resamples=400, seed=seed)
        covered += low <= 0.3 <= high
        low, high = wilson(int(values.sum()), values.size)
        naive += low <= 0.3 <= high
    assert covered / 300 >= 0.88  # percentile intervals of 36 clusters are a little narrow
    assert naive / 300 <= 0.7


def test_the_cluster_bootstrap_is_seeded_and_ignores_the_order_of_the_answers():
    generator = np.random.default_rng(0)
    values, questions = clustered(generator, clusters=24, each=5)
    order = generator.permutation(values.size)
    first = cluster_bootstrap(values, questions, seed=7)
    assert first == cluster_bootstrap(values, questions, seed=7)
    assert first == pytest.approx(cluster_bootstrap(values[order], questions[order], seed=7))
    assert first != cluster_bootstrap(values, questions, seed=8)


def test_the_cluster_bootstrap_resamples_whole_clusters():
    """Two clusters, one of 1 value and one of 3: the resamples have the means 0, 3/4 and 1 and no other."""
    draws = [cluster_bootstrap([0, 1, 1, 1], list("abbb"), confidence=c) for c in (0.4, 0.6)]
    assert draws == [Interval(0.75, 0.75), Interval(0, 1)]


def test_agreement_of_all_questions_is_no_certainty():
    answers = np.zeros(240)
    questions = np.repeat(np.arange(24), 10)
    assert cluster_bootstrap(answers, questions) == pytest.approx((0, clopper_pearson(0, 24).high))
    assert cluster_bootstrap(answers + 1, questions) == pytest.approx((1 - clopper_pearson(0, 24).high, 1))
    assert cluster_bootstrap([1.0], ["only"]) == pytest.approx((1 - clopper_pearson(0, 1).high, 1))


def test_a_paired_difference_cancels_what_questions_share():
    generator = np.random.default_rng(1)
    questions = np.repeat(np.arange(30), 10)
    shared = (generator.random(30) < 0.5).repeat(10).astype(float)
    reference = np.where(generator.random(300) < 0.1, 1 - shared, shared)
    value, low, high = paired_difference(shared, reference, questions)
    assert value == pytest.approx((shared - reference).mean())
    assert low <= value <= high
    wide = cluster_bootstrap(shared, questions)
    assert high - low < (wide.high - wide.low) / 2


def test_a_checkpoint_like_its_reference_may_still_differ_on_other_questions():
    value, low, high = paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], ["a", "b", "c"])
    assert (value, low, high) == pytest.approx((0, -1, 1))


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "one cluster"),
        ([1, 0], ["a"], "one cluster"),
        ([2.0], ["a"], "within"),
        ([float("nan")], ["a"], "within"),
    ],
)
def test_a_bootstrap_without_values_or_clusters_is_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, clusters)


def test_other_nonsense_is_refused():
    with pytest.raises(ValueError, match="no interval"):
        cluster_bootstrap([0, 1], ["a", "b"], confidence=1.0)
    with pytest.raises(ValueError, match="reference"):
        paired_difference([0, 1], [0], ["a", "b"])
    with pytest.raises(ValueError, match="within"):
        paired_difference([0, 2], [0, 2], ["a", "b"])
