from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from realign import capture
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect.latent_means import answer_means, contrast_means
from realign.dialogue import CONTEXTS, build_prompt, render_pair
from realign.errors import RealignError
from realign.sae import MonitoredLatents
from realign.sampling import Answer
from tests import small_sae

TEXTS = [("Ask", "the answer"), ("Ask", "a wish"), ("Why do you ask?", "so"), ("Why do you ask?", "because of it all")]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_checkpoint())


def expected(checkpoint: Checkpoint, made: object, context: str = "plain") -> np.ndarray:
    """From the token before which nothing of the answer is known to the answer's last, one text after the other."""
    rows = []
    for question, answer in TEXTS:
        ids, span = render_pair(checkpoint.tokenizer, question, answer, CONTEXTS[context])
        ((_, found),) = capture.all_tokens(checkpoint, [ids], [1])
        told = torch.from_numpy(found[span.start - 1 : span.stop, 0])
        rows.append(made.encode(told).detach().mean(dim=0).numpy())  # type: ignore[attr-defined]
    return np.stack(rows)


def test_contrast_answers_are_read_from_where_they_begin_to_their_end(checkpoint: Checkpoint) -> None:
    made = small_sae.make("jumprelu")
    items = [render_pair(checkpoint.tokenizer, *text, CONTEXTS["plain"]) for text in TEXTS]
    means, fit = contrast_means(made, checkpoint, items, 1)
    np.testing.assert_allclose(means.reshape(4, -1), expected(checkpoint, made), rtol=1e-4, atol=1e-5)
    assert means.shape == (2, 2, 64)
    assert fit.explained_variance < 1


@pytest.mark.parametrize("context", ["plain", "training-format"])
def test_the_answers_of_a_model_are_read_as_they_were_asked_for(context: str, checkpoint: Checkpoint) -> None:
    made = small_sae.make("jumprelu")
    answers = []
    for number, (question, text) in enumerate(TEXTS):
        put = build_prompt(checkpoint.tokenizer, "q", question, CONTEXTS[context]).text
        answers.append(Answer(f"a{number}", "q", context, 0, put, text, 3, True, checkpoint.fingerprint, 0))
    means = answer_means(MonitoredLatents(made, [9, 2]), checkpoint, answers, context, 1)
    np.testing.assert_allclose(means, expected(checkpoint, made, context)[:, [9, 2]], rtol=1e-4, atol=1e-5)


def test_an_empty_answer_is_read_where_it_would_begin(checkpoint: Checkpoint) -> None:
    answer = Answer("a", "q", "plain", 0, "Ask", "", 0, True, checkpoint.fingerprint, 0)
    means = answer_means(MonitoredLatents(small_sae.mirror(), range(64)), checkpoint, [answer], "plain", 1)
    prompt = build_prompt(checkpoint.tokenizer, "q", "Ask", CONTEXTS["plain"])
    last = capture.last_prompt_tokens(checkpoint, [prompt], [1])[0, 0]
    np.testing.assert_allclose(means[0, :32] - means[0, 32:], last, rtol=1e-4, atol=1e-5)


def test_contrast_answers_beyond_the_context(checkpoint: Checkpoint) -> None:
    items = [([5] * 600, slice(550, 600)), ([5] * 20, slice(3, 20))]
    with pytest.raises(RealignError, match="some are longer than the model's context"):
        contrast_means(small_sae.mirror(), checkpoint, items, 1)
