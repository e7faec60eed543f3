"""A linear probe on activations: its layer chosen, its skill measured and its controls run by grouped folds.

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

FOLDS = 5
_SHUFFLES = 5
# Strong, because there are many more dimensions than answers.
_INVERSE_REGULARISATION = 0.01


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        column: which of the layers offered it reads.
        auroc: of misaligned against aligned answers of groups that it did not see, its layer chosen without them.
        shuffled: the same with labels swapped at random within pairs; 0.5 if nothing leaks.
        ungrouped: the same on folds drawn at random, where the probe has seen the prompts.
        probabilities: features [N, width] to probabilities of "misaligned" [N].
    """

    column: int
    auroc: Estimate
    shuffled: float
    ungrouped: float
    probabilities: Callable[[Features], Scores]


def fit(features: Features, groups: NDArray[Any], *, seed: int = 0) -> Probe:
    """Logistic regression on standardised features, at the layer that does best.

    Args:
        features: [N, 2, L, width]: of N pairs the aligned and the misaligned answer, in L layers.
        groups: [N] the group of each pair; at least `FOLDS` different ones.
        seed: of the shuffled labels and of the folds drawn at random.
    """
    from sklearn.model_selection import GroupKFold, KFold

    pairs, _, layers, width = features.shape
    items = features.reshape(2 * pairs, layers, width)
    labels = np.tile(np.array([0, 1]), pairs)
    group = np.repeat(groups, 2)
    folds = _numbered(GroupKFold(FOLDS).split(items, labels, group), len(items))
    scores = np.stack([_out_of_fold(items[:, layer], labels, folds) for layer in range(layers)])
    column = int(np.argmax([_auroc(line, labels) for line in scores]))
    best = items[:, column]
    rng = np.random.default_rng(seed)
    swaps = [np.repeat(rng.integers(0, 2, pairs), 2) ^ labels for _ in range(_SHUFFLES)]
    at_random = _numbered(KFold(FOLDS, shuffle=True, random_state=seed).split(best), len(best))
    final = _fitted(best, labels)
    return Probe(
        column=column,
        auroc=grouped_auroc(_nested(items, labels, folds, scores), labels, group),
        shuffled=float(np.mean([_auroc(_out_of_fold(best, swap, folds), swap) for swap in swaps])),
        ungrouped=_auroc(_out_of_fold(best, labels, at_random), labels),
        probabilities=lambda found: np.asarray(final.predict_proba(found)[:, 1], float),
    )


def _numbered(splits: Any, count: int) -> NDArray[np.int64]:
    """For each item the number of the fold in which it is tested."""
    folds = np.zeros(count, np.int64)
    for number, (_, tested) in enumerate(splits):
        folds[tested] = number
    return folds


def _out_of_fold(features: Features, labels: Labels, folds: NDArray[np.int64]) -> Scores:
    """Log odds of "misaligned" for each item, from a probe that was fitted on the other folds."""
    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        tested = folds == fold
        scores[tested] = _fitted(features[~tested], labels[~tested]).decision_function(features[tested])
    return scores


def _nested(items: Features, labels: Labels, folds: NDArray[np.int64], scores: NDArray[np.float64]) -> Scores:
    """From scores [L, N] for each fold those of the layer that is best without it: choosing a layer must not flatter.

    The best is found by folds within the others, so that nothing of the fold has a part in the choice. (Scores on the
    other folds from probes that were fitted with this fold do have a part: on noise they lift the AUROC to 0.55.)
    """
    chosen = np.zeros(len(labels))
    for fold in np.unique(folds):
        tested = folds == fold
        rest, inner = items[~tested], folds[~tested]
        skills = [_auroc(_out_of_fold(rest[:, n], labels[~tested], inner), labels[~tested]) for n in range(len(scores))]
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
