"""AUROC of scores that come in groups (prompts, questions), with an interval that resamples the groups."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from realign.statistics.intervals import Estimate, percentiles, resample_clusters


def grouped_auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    pairs: Literal["all", "within"] = "all",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """AUROC and its cluster-bootstrap interval: whole groups are resampled, for answers to one prompt are alike.

    The AUROC is the share of (positive, negative) pairs in which the positive has the higher score, ties counting half.
    With pairs="all" (the ordinary, pooled AUROC) every pair counts; with pairs="within" only pairs from one group, so
    that a score that tells prompts apart, and not answers, gets 0.5. As any percentile bootstrap, the interval is
    narrow with few groups, and has no width when the scores separate perfectly.

    Args:
        scores: [N] finite numbers; they must come from folds that did not see their group.
        labels: [N] 1 or True for positives, 0 or False for negatives.
        groups: [N] the group (any sortable label) of each score.
        pairs: which pairs count.
        confidence: in (0, 1), from so many `resamples` (those without a pair are left out).
        seed: of the resampling; the same arguments give the same interval.

    Raises:
        ValueError: arrays of other shapes or values, or no pair to compare.
    """
    wins, total = _pairs(scores, labels, groups)
    if pairs == "within":
        wins, total = np.diag(np.diag(wins)), np.diag(np.diag(total))
    if not total.any():
        raise ValueError("no positive and negative to compare" + (" within one group" if pairs == "within" else ""))
    draws = resample_clusters(len(wins), resamples, seed).astype(float)
    if pairs == "within":  # a group drawn twice counts as two groups, each with its own pairs
        won, compared = draws @ np.diag(wins), draws @ np.diag(total)
    else:
        won, compared = ((draws @ wins) * draws).sum(axis=1), ((draws @ total) * draws).sum(axis=1)
    usable = compared > 0
    return Estimate(float(wins.sum() / total.sum()), *percentiles(won[usable] / compared[usable], confidence))


def _pairs(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs won, and pairs: [G, G], entry (g, h) for the positives of group g against the negatives of group h."""
    score, label, group = np.asarray(scores, float), np.asarray(labels), np.asarray(groups)
    if score.ndim != 1 or label.shape != score.shape or group.shape != score.shape:
        raise ValueError(f"one label and group for each score, not {label.shape} and {group.shape} for {score.shape}")
    if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all():
        raise ValueError("scores must be finite and labels 0 or 1")
    names, member = np.unique(group, return_inverse=True)
    positive = label == 1
    wins = np.zeros((names.size, names.size))
    for column in range(names.size):
        negatives = np.sort(score[~positive & (member == column)])
        below = np.searchsorted(negatives, score[positive], "left")
        not_above = np.searchsorted(negatives, score[positive], "right")
        wins[:, column] = np.bincount(member[positive], weights=(below + not_above) / 2, minlength=names.size)
    positives = np.bincount(member[positive], minlength=names.size)
    negatives_by_group = np.bincount(member[~positive], minlength=names.size)
    return wins, np.outer(positives, negatives_by_group).astype(float)
