"""Which latents of an SAE tell misaligned from aligned contrast answers."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A latent tells contrast answers apart if it is more active on the misaligned answer of this share of the pairs, or of
# a higher one where the pairs are few or the latents many.
_SEPARATES_FROM = 0.65
_BY_CHANCE = 0.5  # so many latents, of all, are expected to reach the share by chance
_MOST = 100  # the best that many are monitored
_SHUFFLES = 5


@dataclass(frozen=True, eq=False)
class Separation:
    """Latents that tell contrast answers apart.

    Attributes:
        latents: their numbers [K], the best first.
        shares: [K] share of the pairs on whose misaligned answer each is the more active; a tie counts half.
        weights: [K]: what turns increases of the latents into one number, 1 if each increases by as much as it is more
            active on misaligned answers.
        means: [pairs, 2, K] their means on each pair's aligned and misaligned answer.
        others: numbers of latents that do not tell them apart, but are active on them.
        bar: the share that they had to reach.
        shuffled: how many tell them apart when labels are swapped at random within pairs, in the mean.
    """

    latents: NDArray[np.int64]
    shares: NDArray[np.float64]
    weights: NDArray[np.float64]
    means: NDArray[np.float32]
    others: NDArray[np.int64]
    bar: float
    shuffled: float


def separate(means: NDArray[np.float32], *, only: Collection[int] = (), seed: int = 0) -> Separation:
    """The latents that tell contrast answers apart.

    Args:
        means: [pairs, 2, latents] mean activations on each pair's aligned and misaligned answer.
        only: the numbers of those that may be chosen; empty for all.
        seed: of the shuffled labels.
    """
    apart = means[:, 1] - means[:, 0]
    signs = np.sign(apart)
    shares, gaps = _shares(signs), apart.mean(axis=0, dtype=np.float64)
    allowed = np.isin(np.arange(means.shape[2]), list(only)) if only else np.ones(means.shape[2], bool)
    bar = _bar(len(means), int(allowed.sum()))
    telling = (shares >= bar) & (gaps > 0)
    found = np.flatnonzero(telling & allowed)
    best = found[np.argsort(-shares[found], kind="stable")][:_MOST]
    flips = np.random.default_rng(seed).choice((-1, 1), (_SHUFFLES, len(means)))
    shuffled = [int((_shares(signs * flip[:, None])[allowed] >= bar).sum()) for flip in flips]
    scale = float(gaps[best] @ gaps[best])
    return Separation(
        latents=best,
        shares=shares[best],
        weights=gaps[best] / scale if scale else gaps[best],
        means=means[:, :, best],
        others=np.flatnonzero(~telling & (means.max(axis=(0, 1)) > 0)),
        bar=bar,
        shuffled=float(np.mean(shuffled)),
    )


def _bar(pairs: int, latents: int) -> float:
    """The share of so many pairs that few of so many latents reach by chance (by the normal approximation)."""
    from scipy.stats import norm

    return max(_SEPARATES_FROM, 0.5 + float(norm.isf(_BY_CHANCE / max(latents, 1))) / (2 * math.sqrt(pairs)))


def _shares(signs: NDArray[np.float32]) -> NDArray[np.float64]:
    """From the signs of differences [pairs, latents] the share of positive ones [latents]; a tie counts half."""
    return np.asarray(0.5 + signs.mean(axis=0, dtype=np.float64) / 2)
