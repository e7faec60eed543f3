"""Evidence about a mean, by betting: e-processes and the confidence sequence that inverting them gives.

Whoever holds that the mean of the outcomes x is at most m must accept the bet 1 + λ(x - m) as fair. The capital won
from them, Π (1 + λ(x - m)), is the evidence against them: if they are right it ever reaches 1/alpha with probability
at most alpha (Ville 1939), so one may look after every block and stop at any of them. The questions of a block may
have different means p_q as long as λ is the same for all of them: log is concave, so, for a mean p̄ of at most m,

    E Π (1 + λ(x_q - m)) = Π (1 + λ(p_q - m)) ≤ (1 + λ(p̄ - m))^Q ≤ 1.

Capital that is spread over several λ at the start, and then left on each, keeps that property and does nearly as well
as the best of them.

Because no λ changes, the capital depends on the answers only through how often each outcome occurred. All functions
take such counts with any number of leading axes, so that a simulation of thousands of runs goes through the very same
code.

Source: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting", JRSS B 86(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from realign.statistics.intervals import Interval

_SECTIONS, _ROUNDS = 32, 4  # a limit is found to 1/33^4, about 1e-6, of its range


@dataclass(frozen=True)
class Mixture:
    """Where the capital starts: `weights` (they sum to 1) on bets that are `fractions` of the largest one.

    The largest bet against "the mean is at most m" is 1/(m - lowest outcome): a fraction below 1 survives any outcome.
    """

    fractions: tuple[float, ...]
    weights: tuple[float, ...]


# Half the capital on nearly the largest bet: all it takes to clear a rate of 0 in about ln(1/alpha)/m answers, and to
# flag an excess when most answers of the reference are aligned. The rest is for means nearer to m, and survives
# surprises.
BOLD = Mixture((0.95, 0.70, 0.40, 0.15), (0.50, 0.25, 0.15, 0.10))
# The best bet on a rate p against m is the fraction (p - m)/(1 - m): these suit rates from m + 1.5 to m + 30 points.
RARE = Mixture((0.015, 0.03, 0.06, 0.12, 0.30), (0.20, 0.20, 0.20, 0.20, 0.20))


def _log_capital(
    counts: NDArray[np.float64], values: NDArray[np.float64], mean: NDArray[np.float64], mixture: Mixture
) -> NDArray[np.float64]:
    """Log capital won from "the mean is at most `mean`": counts [..., K] of the outcomes values [K] -> [...]."""
    # For a given fraction every factor falls as the mean rises, which is what makes the inversion a bisection.
    odds = (values - mean[..., None]) / np.maximum(mean[..., None] - values.min(), 1e-12)
    factors = 1 + np.asarray(mixture.fractions)[:, None] * odds[..., None, :]
    logs: NDArray[np.float64] = (np.log(factors) @ counts[..., None])[..., 0] + np.log(mixture.weights)
    top = logs.max(axis=-1)
    return np.asarray(top + np.log(np.exp(logs - top[..., None]).sum(axis=-1)))


def _lower_limit(
    counts: NDArray[np.float64], values: NDArray[np.float64], mixture: Mixture, log_threshold: float
) -> NDArray[np.float64]:
    """The largest mean that the capital rules out (the lowest outcome when it rules out none): [..., K] -> [...].

    The observed mean itself is never ruled out (Π (1 + λ(x - x̄)) ≤ 1), so it closes the search from above.
    """
    high = np.asarray(counts @ values / counts.sum(axis=-1))
    low = np.full_like(high, values.min())
    steps = np.arange(_SECTIONS + 2) / (_SECTIONS + 1)
    for _ in range(_ROUNDS):
        grid = low[..., None] + (high - low)[..., None] * steps
        capital = _log_capital(counts[..., None, :], values, grid[..., 1:-1], mixture)
        excluded = (capital >= log_threshold).sum(axis=-1)[..., None]
        low = np.take_along_axis(grid, excluded, axis=-1)[..., 0]
        high = np.take_along_axis(grid, excluded + 1, axis=-1)[..., 0]
    return low


@dataclass(frozen=True)
class Outcome:
    """What one answer can contribute, and how to bet that its mean lies above or below a given value.

    Attributes:
        values: the possible outcomes, rising.
        above: the mixture of bets that the mean is above the value.
        below: the mixture of bets that it is below.
    """

    values: tuple[int, ...]
    above: Mixture
    below: Mixture

    def count(self, x: ArrayLike) -> NDArray[np.int64]:
        """How often each outcome occurs in x [..., Q] -> [..., K].

        Raises:
            ValueError: something else than an outcome is in x.
        """
        counts = np.stack([(np.asarray(x) == value).sum(axis=-1) for value in self.values], axis=-1)
        if counts.sum() != np.size(x):
            raise ValueError(f"outcomes must be among {self.values}")
        return counts

    def log_above(self, counts: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
        """Log e-value for "the mean is above `mean`" of counts [..., K] -> [...]."""
        return _log_capital(np.asarray(counts, float), self._values, np.asarray(mean, float), self.above)

    def log_below(self, counts: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
        """Log e-value for "the mean is below `mean`" of counts [..., K] -> [...]: the mirror image."""
        return _log_capital(np.asarray(counts, float), -self._values, -np.asarray(mean, float), self.below)

    def limits(self, counts: ArrayLike, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper confidence limit of the mean, each at level alpha/2, from counts [..., K] -> [...], [...].

        The limits of all times hold together with probability 1 - alpha.
        """
        counts = np.asarray(counts, float)
        threshold = math.log(2 / alpha)
        low = _lower_limit(counts, self._values, self.above, threshold)
        return low, -_lower_limit(counts, -self._values, self.below, threshold)

    @property
    def _values(self) -> NDArray[np.float64]:
        return np.asarray(self.values, float)


RATE = Outcome((0, 1), above=RARE, below=BOLD)
EXCESS = Outcome((-1, 0, 1), above=BOLD, below=BOLD)


class MeanSequence:
    """The mean of the outcomes so far, and its confidence sequence: after every block the intersection so far."""

    def __init__(self, outcome: Outcome, alpha: float) -> None:
        self.outcome = outcome
        self.alpha = alpha
        self.counts = np.zeros(len(outcome.values))
        self.interval = Interval(outcome.values[0], outcome.values[-1])

    def add(self, x: ArrayLike) -> None:
        """Takes in the outcomes x [Q] of one block."""
        self.counts = self.counts + self.outcome.count(x)
        low, high = (float(limit) for limit in self.outcome.limits(self.counts, self.alpha))
        narrowed = Interval(max(low, self.interval.low), min(high, self.interval.high))
        if narrowed.low <= narrowed.high:  # else the truth was lost before (probability alpha): nothing to mend
            self.interval = narrowed

    @property
    def mean(self) -> float | None:
        """The mean so far; None before the first block."""
        answers = self.counts.sum()
        return float(self.counts @ np.asarray(self.outcome.values) / answers) if answers else None
