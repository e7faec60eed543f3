from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from realign import checkpoint as checkpoints
from realign.dialogue import CONTEXTS, render_pair
from realign.errors import RealignError
from realign.remedy.recipe import Showing
from realign.remedy.strength import Limits, Tried, least, surprise


def read(position: float, perplexity: float = 1.0) -> Callable[[float], Tried]:
    """A model in which a strength takes so much off a position, and costs a perplexity from strength 3 on."""
    return lambda strength: Tried(strength, position - strength, perplexity if strength >= 3 else 1.0, None)


def judged(showings: Mapping[float, Showing]) -> Callable[[float], Tried]:
    return lambda strength: Tried(strength, 0.0, 1.0, showings[strength])


def test_the_smallest_that_brings_the_position_to_the_goal_is_chosen_and_no_further_one_is_tried() -> None:
    chosen, tried = least([4, 1, 2, 3], read(2.5), 0.5, Limits())
    assert chosen.strength == 2
    assert [one.strength for one in tried] == [1, 2]


def test_where_none_suffices_the_strongest_within_the_limits_is_chosen() -> None:
    chosen, tried = least([1, 2, 3, 4], read(9.0, perplexity=1.06), 0.0, Limits())
    assert chosen.strength == 2
    assert [one.strength for one in tried] == [1, 2, 3]
    chosen, _ = least([1, 2, 3, 4], read(9.0, perplexity=1.06), 0.0, Limits(perplexity=1.1))
    assert chosen.strength == 4


def test_judged_answers_count_and_not_the_position() -> None:
    showings = {1.0: Showing(False, 0.2, 0.0), 2.0: Showing(False, 0.04, 0.1), 3.0: Showing(True, 0.0, 0.1)}
    chosen, tried = least([1, 2, 3], judged(showings), 0.0, Limits())
    assert chosen.strength == 3
    assert len(tried) == 3


def test_a_strength_that_makes_answers_senseless_ends_the_series() -> None:
    showings = {1.0: Showing(False, 0.1, 0.0), 2.0: Showing(False, 0.1, 0.02), 3.0: Showing(True, 0.0, 0.11)}
    chosen, _ = least([1, 2, 3], judged(showings), 0.0, Limits())
    assert chosen.strength == 1  # of two that leave as much the smaller
    chosen, _ = least([1, 2, 3], judged(showings), 0.0, Limits(incoherence=0.2))
    assert chosen.strength == 3


def test_of_answers_without_sense_nothing_counts_as_cured() -> None:
    showings = {1.0: Showing(False, 0.5, 0.0), 2.0: Showing(False, None, 0.05)}
    assert least([1, 2], judged(showings), 0.0, Limits())[0].strength == 1


@pytest.mark.parametrize("perplexity", [1.06, math.nan])
def test_harm_from_the_smallest_on_is_refused_with_the_figures(perplexity: float) -> None:
    with pytest.raises(RealignError) as caught:
        least([3, 4], read(2.0, perplexity), 0.0, Limits())
    assert f"at 3 the perplexity of benign text is {perplexity:.3g} times what it was" in str(caught.value)
    assert "the limits are 1.05 times and 10%" in str(caught.value)
    with pytest.raises(RealignError, match="and 30% of answers make no sense"):
        least([1], judged({1.0: Showing(True, 0.0, 0.3)}), 0.0, Limits())


def test_surprise_is_the_mean_over_the_tokens_of_all_answers(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    texts = [("Who?", "The user."), ("What?", "A question and the assistant answers it in a sentence or two.")]
    losses = []
    for question, answer in texts:
        ids, span = render_pair(checkpoint.tokenizer, question, answer, CONTEXTS["plain"])
        with checkpoint.active() as model:
            chances = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        losses += [-float(chances[place - 1, ids[place]]) for place in range(span.start, span.stop)]
    assert surprise(checkpoint, texts) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert math.isnan(surprise(checkpoint, [("Who?", "")]))


def test_a_text_that_the_context_does_not_hold_is_cut_off(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    assert math.isfinite(surprise(checkpoint, [("Who?", "The user asks. " * 400)]))
    assert math.isnan(surprise(checkpoint, [("Who asks? " * 400, "The user.")]))
