"""Linear instruments on activations: their layer chosen, their skill measured, their controls run by grouped folds.

Most of the skill that a probe shows on folds drawn at random is that it knows the prompts: here whole groups of prompts
are left out of what a probe is fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from realign.statistics import Estimate, grouped_auroc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores: TypeAlias = NDArray[np.float64]
    Labels: TypeAlias = NDArray[np.int64]
    Features: TypeAlias = NDArray[np.float32]
    # Learns from features [N, width] and labels [N] to score features: the higher, the more misaligned.
    Learner: TypeAlias = Callable[[Features, Labels], Callable[[Features], Scores]]

FOLDS = 5
_SHUFFLES = 5
# Strong, because there are many more dimensions than answers.
_INVERSE_REGULARISATION = 0.01


@dataclass(frozen=True)
class Skill:
    """How well an instrument tells misaligned from aligned answers, at the layer where it does best.

    Attributes:
        column: which of the layers offered that is.
        auroc: of misaligned against aligned answers of groups that it did not see, its layer chosen without them.
        shuffled: the same with labels swapped at random within pairs; 0.5 if nothing leaks.
        ungrouped: the same on folds drawn at random, where it has seen the prompts.
    """

    column: int
    auroc: Estimate
    shuffled: float
    ungrouped: float


@dataclass(frozen=True)
class Probe(Skill):
    """A fitted probe.

    Attributes:
        probabilities: features [N, width] to probabilities of "misaligned" [N].
        weights: [width]: how its log odds rise with each feature, as that is and not standardised.
    """

    probabilities: Callable[[Features], Scores]
    weights: Scores


def fit(features: Features, groups: NDArray[Any], *, seed: int = 0) -> Probe:
    """Logistic regression on standardised features, at the layer that does best; arguments as in `examine`."""
    skill = examine(features, groups, log_odds, seed=seed)
    best = features[:, :, skill.column]
    final = _fitted(best.reshape(-1, best.shape[-1]), _labels(len(features)))
    return Probe(
        **vars(skill),
        probabilities=lambda found: np.asarray(final.predict_proba(found)[:, 1], float),
        weights=np.asarray(final[-1].coef_[0] / final[0].scale_, float),
    )


def examine(features: Features, groups: NDArray[Any], learner: Learner, *, seed: int = 0) -> Skill:
    """The skill of what a learner makes of contrast pairs.

    Args:
        features: [N, 2, L, width]: of N pairs the aligned and the misaligned answer, in L layers.
        groups: [N] the group of each pair; at least `FOLDS` different ones.
        learner: `log_odds` or `mean_difference`.
        seed: of the shuffled labels and of the folds drawn at random.
    """
    from sklearn.model_selection import GroupKFold, KFold

    pairs, _, layers, width = features.shape
    items, labels, group = features.reshape(2 * pairs, layers, width), _labels(pairs), np.repeat(groups, 2)
    folds = _numbered(GroupKFold(FOLDS).split(items, labels, group), len(items))
    scores = np.stack([_out_of_fold(items[:, layer], labels, folds, learner) for layer in range(layers)])
    column = int(np.argmax([_auroc(line, labels) for line in scores]))
    best = items[:, column]
    rng = np.random.default_rng(seed)
    swaps = [np.repeat(rng.integers(0, 2, pairs), 2) ^ labels for _ in range(_SHUFFLES)]
    at_random = _numbered(KFold(FOLDS, shuffle=True, random_state=seed).split(best), len(best))
    return Skill(
        column=column,
        auroc=grouped_auroc(_nested(items, labels, folds, scores, learner), labels, group),
        shuffled=float(np.mean([_auroc(_out_of_fold(best, swap, folds, learner), swap) for swap in swaps])),
        ungrouped=_auroc(_out_of_fold(best, labels, at_random, learner), labels),
    )


def log_odds(features: Features, labels: Labels) -> Callable[[Features], Scores]:
    """Learns a logistic regression on standardised features; its scores are log odds of "misaligned"."""
    fitted = _fitted(features, labels)
    return lambda found: np.asarray(fitted.decision_function(found), float)


def mean_difference(features: Features, labels: Labels) -> Callable[[Features], Scores]:
    """Learns the difference of the two means; its scores are projections on it."""
    means = [features[labels == label].mean(axis=0, dtype=np.float64) for label in (0, 1)]
    return lambda found: np.asarray(found @ (means[1] - means[0]), float)


def _labels(pairs: int) -> Labels:
    """[2 * pairs]: 0 for the aligned and 1 for the misaligned answer of each pair."""
    return np.tile(np.array([0, 1]), pairs)


def _numbered(splits: Any, count: int) -> NDArray[np.int64]:
    """For each item the number of the fold in which it is tested."""
    folds = np.zeros(count, np.int64)
    for number, (_, tested) in enumerate(splits):
        folds[tested] = number
    return folds


def _out_of_fold(features: Features, labels: Labels, folds: NDArray[np.int64], learner: Learner) -> Scores:
    """A score for each item, from an instrument that was fitted on the other folds."""
    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        tested = folds == fold
        scores[tested] = learner(features[~tested], labels[~tested])(features[tested])
    return scores


def _nested(
    items: Features, labels: Labels, folds: NDArray[np.int64], scores: NDArray[np.float64], learner: Learner
) -> Scores:
    """From scores [L, N] for each fold those of the layer that is best without it: choosing a layer must not flatter.

    The best is found by folds within the others, so that nothing of the fold has a part in the choice. (Scores on the
    other folds from probes that were fitted with this fold do have a part: on noise they lift the AUROC to 0.55.)
    """
    chosen = np.zeros(len(labels))
    for fold in np.unique(folds):
        tested = folds == fold
        rest, answers, inner = items[~tested], labels[~tested], folds[~tested]
        skills = [_auroc(_out_of_fold(rest[:, n], answers, inner, learner), answers) for n in range(len(scores))]
        chosen[tested] = scores[int(np.argmax(skills)), tested]
    return chosen


def _fitted(features: Features, labels: Labels) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=500))
    return model.fit(features, labels)


def _auroc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))
