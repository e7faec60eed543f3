"""Intervals for a fixed number of answers: binomial ones, and ones that resample questions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for k of n independent answers (Wilson 1927); 0 to 1 when n is 0.

    Raises:
        ValueError: not 0 <= k <= n, or confidence outside (0, 1).
    """
    return _binomial(k, n, confidence, "wilson")


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval for k of n independent answers (Clopper and Pearson 1934); 0 to 1 when n is 0.

    Raises:
        ValueError: not 0 <= k <= n, or confidence outside (0, 1).
    """
    return _binomial(k, n, confidence, "exact")


def _binomial(k: int, n: int, confidence: float, method: str) -> Interval:
    if not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"no interval for {k} of {n} at confidence {confidence}")
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest

    low, high = binomtest(k, n).proportion_ci(confidence, method=method)
    return Interval(float(low), float(high))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    support: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Percentile interval of the mean of all values, with whole clusters (questions) resampled (Field and Welsh 2007).

    It says how far a result carries to other questions, where the sequential interval speaks of these questions only.
    With few clusters it is somewhat narrow. When the means of all clusters agree, resampling shows nothing, and 0 on 24
    questions is not a certain 0: then the interval is what Clopper and Pearson give for 0 of C clusters that differ (a
    cluster differs with at least the probability of its expected difference over the width of the support).

    Args:
        values: [N] numbers within the support.
        clusters: [N] the cluster (any sortable label) of each value.
        confidence: in (0, 1), from so many `resamples`; the same `seed` gives the same interval.
        support: the lowest and highest possible value.

    Raises:
        ValueError: no values, or arrays of other shapes, or values outside the support.
    """
    array, labels = np.asarray(values, float), np.asarray(clusters)
    low, high = support
    if array.ndim != 1 or not array.size or labels.shape != array.shape:
        raise ValueError(f"one cluster for each value, not {labels.shape} for {array.shape}")
    if not ((array >= low) & (array <= high)).all():
        raise ValueError(f"values must lie within {support}")
    members = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(members)
    sums = np.bincount(members, weights=array)
    means = sums / sizes
    if np.allclose(means, means[0], rtol=0, atol=1e-12):
        slack = clopper_pearson(0, sizes.size, confidence).high * (high - low)
        return Interval(max(low, float(means[0]) - slack), min(high, float(means[0]) + slack))
    draws = resample_clusters(sizes.size, resamples, seed)
    return percentiles((draws @ sums) / (draws @ sizes), confidence)


def paired_difference(
    values: ArrayLike,
    reference: ArrayLike,
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of values minus reference, pair by pair, with `cluster_bootstrap` over the pairs' questions.

    Args:
        values: [N] numbers in [0, 1] of the checkpoint.
        reference: [N] those of the reference on the same questions and contexts, in the same order.
        clusters: [N] the question of each pair.
        confidence, resamples, seed: as in `cluster_bootstrap`.

    Raises:
        ValueError: no values, arrays of other shapes, or values outside [0, 1].
    """
    first, second = np.asarray(values, float), np.asarray(reference, float)
    if first.shape != second.shape:
        raise ValueError(f"one value of the reference for each of the checkpoint, not {second.shape} for {first.shape}")
    if ((first < 0) | (first > 1) | (second < 0) | (second > 1)).any():
        raise ValueError("values must lie within [0, 1]")
    difference = first - second
    interval = cluster_bootstrap(
        difference, clusters, confidence=confidence, resamples=resamples, seed=seed, support=(-1.0, 1.0)
    )
    return Estimate(float(difference.mean()), *interval)


def resample_clusters(clusters: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each cluster is drawn in each resample (as many draws as clusters): [resamples, clusters]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)


def percentiles(statistics: NDArray[np.float64], confidence: float) -> Interval:
    """The central interval of the resampled statistics.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"no interval at confidence {confidence}")
    low, high = np.quantile(statistics, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
