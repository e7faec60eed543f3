"""The random numbers of an answer and the inverse transform."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from realign.streams import draw, uniforms

GOLDEN = [0.2982771411809302, 0.05192692284151823, 0.48272472904878927]


def test_a_stream_never_changes() -> None:
    # These numbers are part of every run folder that was ever written: a run could not be resumed if they changed.
    assert uniforms(0, "wish", "plain", 0, 3).tolist() == GOLDEN
    assert uniforms(0, "wish", "plain", 0, 1000)[:3].tolist() == GOLDEN


def test_every_name_makes_a_stream_of_its_own() -> None:
    names = [(0, "a", "b", 0), (1, "a", "b", 0), (0, "b", "a", 0), (0, "a", "b", 1), (0, "ab", "", 0), (0, "", "ab", 0)]
    streams = np.array([uniforms(*name, 2000) for name in names])
    correlation = np.corrcoef(streams) - np.eye(len(names))
    assert np.abs(correlation).max() < 0.1


def test_streams_are_uniform_within_and_across_answers() -> None:
    within = uniforms(3, "q", "plain", 0, 20_000)
    across = np.array([uniforms(3, "q", "plain", index, 1)[0] for index in range(5_000)])
    for numbers in (within, across):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert scipy.stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf, 1.5])
    count = 40_000
    numbers = torch.from_numpy(uniforms(0, "q", "plain", 0, count))
    for temperature in (0.5, 1.0, 2.0):
        tokens, sound = draw(logits.expand(count, -1), numbers, temperature)
        seen = np.bincount(tokens.numpy(), minlength=6)
        expected = torch.softmax(logits.double() / temperature, 0).numpy() * count
        assert sound.all()
        assert seen[4] == 0
        possible = expected > 0
        assert scipy.stats.chisquare(seen[possible], expected[possible]).pvalue > 1e-3


def test_the_first_and_the_last_number_draw_tokens_that_are_possible() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -1e4, -torch.inf]]).expand(2, -1)
    tokens, sound = draw(logits, torch.tensor([0.0, 1.0 - 2.0**-52], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 2]
    assert sound.all()


def test_drawing_leaves_the_logits_alone() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64)
    before = logits.clone()
    draw(logits, torch.tensor([0.2, 0.8], dtype=torch.float64), 0.7)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_told_from_sound_ones(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    tokens, sound = draw(logits, torch.full((3,), 0.5, dtype=torch.float64), 1.0)
    assert sound.tolist() == [True, False, True]
    assert tokens.max() < 4  # within the vocabulary all the same
