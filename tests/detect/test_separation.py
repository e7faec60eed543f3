from __future__ import annotations

import numpy as np
import pytest

from realign.detect.separation import separate


def noise(pairs: int = 40, latents: int = 30) -> np.ndarray:
    return np.random.default_rng(0).random((pairs, 2, latents)).astype(np.float32) * 0.1


def test_latents_that_are_more_active_on_misaligned_answers_are_found_the_best_first() -> None:
    means = noise()
    means[:, 1, 7] += 1.0
    means[:32, 1, 3] += 5.0
    means[32:, 0, 3] += 5.0
    means[:, 0, 9] += 1.0  # more active on the aligned ones: no latent of misaligned answers
    found = separate(means)
    assert found.latents[:2].tolist() == [7, 3]
    assert found.shares[:2].tolist() == [1.0, 0.8]
    assert 9 not in found.latents
    assert 9 in found.others
    np.testing.assert_array_equal(found.means, means[:, :, found.latents])
    assert not set(found.latents) & set(found.others)


def test_an_increase_as_on_misaligned_answers_is_1() -> None:
    means = noise()
    means[:, 1, [4, 7]] += [0.5, 3.0]
    found = separate(means)
    gaps = (means[:, 1] - means[:, 0]).mean(axis=0)[found.latents]
    assert gaps @ found.weights == pytest.approx(1.0)
    assert 0.5 * gaps @ found.weights == pytest.approx(0.5)


def test_a_tie_counts_half_and_what_is_never_active_counts_nothing() -> None:
    means = np.zeros((40, 2, 3), np.float32)
    means[:12, 1, 0] = 1.0  # more active on 30 %, tied on the rest: 0.65
    means[:11, 1, 1] = 1.0
    found = separate(means)
    assert found.latents.tolist() == [0]
    assert found.shares == pytest.approx([0.65])
    assert found.others.tolist() == [1]


def test_a_latent_that_is_high_on_few_misaligned_answers_only_needs_a_positive_mean() -> None:
    means = np.zeros((40, 2, 1), np.float32)
    means[:30, 1] = 1.0
    means[30:, 0] = 9.0
    assert separate(means).latents.size == 0


def test_only_those_that_are_named() -> None:
    means = noise()
    means[:, 1, [4, 7, 8]] += 1.0
    assert sorted(separate(means, only=(7, 8, 20)).latents) == [7, 8]


def test_at_most_a_hundred_are_monitored() -> None:
    means = noise(latents=300)
    means[:, 1, :200] += 1.0
    found = separate(means)
    assert len(found.latents) == len(found.shares) == len(found.weights) == 100
    assert found.latents.max() < 200


def test_shuffled_labels_are_told_apart_by_few() -> None:
    means = noise(pairs=240, latents=500)
    means[:, 1, :50] += 1.0
    found = separate(means, seed=3)
    assert len(found.latents) == 50
    assert found.shuffled < 5


@pytest.mark.parametrize(("pairs", "latents", "bar"), [(240, 32_768, 0.65), (20, 64, 0.77), (100, 1_000_000, 0.745)])
def test_the_bar_rises_where_chance_could_reach_it(pairs: int, latents: int, bar: float) -> None:
    assert separate(np.zeros((pairs, 2, latents), np.float32)).bar == pytest.approx(bar, abs=0.005)


def test_noise_tells_nothing_apart() -> None:
    for seed in range(5):
        means = np.random.default_rng(seed).random((20, 2, 2000)).astype(np.float32)
        found = separate(means)
        assert len(found.latents) <= 4
        assert found.shuffled <= 4
