"""Grouped AUROC against scikit-learn, against brute force, and on a score that only knows the prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from realign.statistics import grouped_auroc
from realign.statistics.intervals import resample_clusters
from tests.statistics.properties import steady

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=40)


@steady
@given(data=rows)
def test_it_is_the_pooled_auroc_of_scikit_learn(data):
    scores, labels, groups = np.asarray(data, float).T
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="no positive and negative"):
            grouped_auroc(scores, labels, groups)
    else:
        value, low, high = grouped_auroc(scores, labels, groups, resamples=50)
        assert value == pytest.approx(roc_auc_score(labels, scores))
        assert 0 <= low <= high <= 1


@steady
@given(data=rows)
def test_within_groups_it_counts_the_pairs_of_each_group(data):
    won = [
        (a > b) + (a == b) / 2
        for a, is_positive, one in data
        for b, is_other_positive, other in data
        if is_positive and not is_other_positive and one == other
    ]
    scores, labels, groups = zip(*data, strict=True)
    if won:
        assert grouped_auroc(scores, labels, groups, pairs="within", resamples=50).value == pytest.approx(np.mean(won))
    else:
        with pytest.raises(ValueError, match="within one group"):
            grouped_auroc(scores, labels, groups, pairs="within")


@pytest.mark.parametrize("pairs", ["all", "within"])
def test_its_interval_is_that_of_groups_resampled_one_by_one(pairs):
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 6)
    labels = np.tile([0, 1], 24)
    scores = generator.normal(size=48) + labels * 0.8 + generator.normal(size=8)[groups]
    resampled = []
    for draws in resample_clusters(8, 200, seed=5):
        copies = [np.flatnonzero(groups == group) for group in range(8) for _ in range(draws[group])]
        if pairs == "all":
            chosen = np.concatenate(copies)
            resampled.append(roc_auc_score(labels[chosen], scores[chosen]))
        else:
            resampled.append(np.mean([roc_auc_score(labels[copy], scores[copy]) for copy in copies]))
    _, low, high = grouped_auroc(scores, labels, groups, pairs=pairs, resamples=200, seed=5)
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))


def test_a_score_that_knows_the_prompt_only_is_exposed_within_groups():
    groups = np.repeat(["a", "b", "c", "d"], 10)
    labels = np.concatenate([[1] * 9 + [0], [1] * 8 + [0] * 2, [1] + [0] * 9, [1] * 2 + [0] * 8])
    prompt_score = np.repeat([0.9, 0.8, 0.1, 0.2], 10)
    assert grouped_auroc(prompt_score, labels, groups).value > 0.8
    assert grouped_auroc(prompt_score, labels, groups, pairs="within").value == 0.5


def test_scores_that_go_with_their_group_make_the_interval_wider():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(16), 10)
    labels = groups % 2
    scores = labels + generator.normal(size=16)[groups] + 0.3 * generator.normal(size=160)
    grouped, apart = grouped_auroc(scores, labels, groups), grouped_auroc(scores, labels, np.arange(160))
    assert grouped.value == apart.value
    assert grouped.high - grouped.low > 1.5 * (apart.high - apart.low)
    assert grouped == grouped_auroc(scores, labels, groups)


@pytest.mark.parametrize(
    ("scores", "labels", "groups", "message"),
    [
        ([1, 2], [0], [0, 0], "one label and group"),
        ([1, 2], [0, 1], [0], "one label and group"),
        ([1, float("nan")], [0, 1], [0, 0], "finite"),
        ([1, 2], [0, 2], [0, 0], "labels 0 or 1"),
        ([], [], [], "no positive and negative"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores, labels, groups, message):
    with pytest.raises(ValueError, match=message):
        grouped_auroc(scores, labels, groups)
