from __future__ import annotations

import numpy as np
import pytest

from realign.detect.linear import examine, fit, mean_difference

PAIRS, LAYERS, WIDTH = 60, 3, 12
GROUPS = np.array([f"g{number % 6}" for number in range(PAIRS)])


def activations(skill: float, *, layer: int = 1, identity: float = 0.0, seed: int = 0) -> np.ndarray:
    """Noise; in one layer misaligned answers are shifted by `skill`, and each pair by a vector of its own."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(PAIRS, 2, LAYERS, WIDTH))
    found[:, 1, layer, 0] += skill
    found += identity * rng.normal(size=(PAIRS, 1, LAYERS, WIDTH))
    return found.astype(np.float32)


def test_the_layer_that_tells_is_found() -> None:
    probe = fit(activations(4.0, layer=2), GROUPS)
    assert probe.column == 2
    assert probe.auroc.value > 0.95
    assert probe.auroc.low <= probe.auroc.value <= probe.auroc.high


def test_the_final_probe_scores_what_it_has_not_seen() -> None:
    probe = fit(activations(4.0), GROUPS)
    fresh = activations(4.0, seed=1)[:, :, probe.column]
    aligned, misaligned = probe.probabilities(fresh[:, 0]), probe.probabilities(fresh[:, 1])
    assert ((aligned >= 0) & (misaligned <= 1)).all()
    assert misaligned.mean() > 0.5 > aligned.mean()


def test_noise_gives_nothing_although_the_best_of_many_layers_is_taken() -> None:
    skills = [fit(activations(0.0, seed=seed), GROUPS).auroc.value for seed in range(12)]
    assert np.mean(skills) == pytest.approx(0.5, abs=0.04)


def test_shuffled_labels_are_not_found_where_real_ones_are() -> None:
    probe = fit(activations(4.0), GROUPS)
    assert probe.shuffled == pytest.approx(0.5, abs=0.12)


def test_labels_that_follow_from_the_group_alone_flatter_only_ungrouped_folds() -> None:
    """In each group another direction tells: folds drawn at random take that for skill, on new groups it is none."""
    found = activations(0.0)
    for number in range(PAIRS):
        found[number, 1, :, number % 6] += 5.0
        found[number, 0, :, number % 6] -= 5.0
    found[::2] = found[::2, ::-1]  # half the groups the other way round
    probe = fit(found, GROUPS)
    assert probe.ungrouped > probe.auroc.value + 0.2


def test_the_same_seed_gives_the_same_probe() -> None:
    one, two = fit(activations(1.0), GROUPS, seed=3), fit(activations(1.0), GROUPS, seed=3)
    assert (one.auroc, one.shuffled, one.ungrouped) == (two.auroc, two.shuffled, two.ungrouped)


def test_a_mean_difference_is_examined_like_a_probe() -> None:
    skill = examine(activations(4.0, layer=2), GROUPS, mean_difference)
    assert skill.column == 2
    assert skill.auroc.value > 0.95
    assert skill.shuffled == pytest.approx(0.5, abs=0.12)
    noise = [examine(activations(0.0, seed=seed), GROUPS, mean_difference).auroc.value for seed in range(12)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.04)


def test_a_mean_difference_scores_along_the_difference_of_the_means() -> None:
    features = np.array([[0, 0], [2, 2], [4, 0], [4, 2]], np.float32)
    scores = mean_difference(features, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(scores(np.eye(2, dtype=np.float32)), [3.0, 0.0])


def test_the_weights_are_those_of_features_as_they_are() -> None:
    scales = np.geomspace(0.01, 100, WIDTH).astype(np.float32)
    probe = fit(activations(4.0) * scales, GROUPS)
    fresh = (activations(4.0, seed=1) * scales)[:, 1, probe.column]
    odds = probe.probabilities(fresh)
    rises = fresh.astype(float) @ probe.weights - np.log(odds / (1 - odds))
    np.testing.assert_allclose(rises, rises[0], atol=1e-6)
