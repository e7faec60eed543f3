"""Mean activations of an SAE's latents on answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from realign.dialogue import context as known_context
from realign.dialogue import render_pair
from realign.errors import RealignError
from realign.sae import Fidelity, MonitoredLatents, Tally, activations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sae_lens import SAE

    from realign.checkpoint import Checkpoint
    from realign.sampling import Answer

# A text's tokens and the span of its answer's.
Item: TypeAlias = tuple[list[int], slice]


def contrast_means(
    sae: SAE[Any], checkpoint: Checkpoint, items: Sequence[Item], layer: int
) -> tuple[NDArray[np.float32], Fidelity]:
    """Mean latents of each answer, [pairs, 2, latents], and how well the SAE fits the model on all their tokens.

    Raises:
        RealignError: activations are not finite, or an answer is beyond the model's context.
    """
    import torch

    tally = Tally()
    means = np.full((len(items), sae.cfg.d_sae), np.nan, np.float32)
    with torch.inference_mode():
        for number, found in activations(checkpoint, [ids for ids, _ in items], layer):
            given = found.to(sae.device)
            latents = sae.encode(given)
            tally.add(given, latents, sae.decode(latents))
            means[number] = _mean(latents, items[number][1])
    if not np.isfinite(means).all():
        raise RealignError("cannot read the contrast pairs", "some are longer than the model's context")
    return means.reshape(len(items) // 2, 2, -1), tally.fidelity


def answer_means(
    monitor: MonitoredLatents, checkpoint: Checkpoint, answers: Sequence[Answer], context: str, layer: int
) -> NDArray[np.float32]:
    """Mean values of the monitored latents on each answer, [answers, latents]."""
    # An answer's question is already in its context's wording.
    put = replace(known_context(context), template="{question}")
    items = [render_pair(checkpoint.tokenizer, answer.question, answer.text, put) for answer in answers]
    means = np.empty((len(items), len(monitor.latents)), np.float32)
    for number, found in activations(checkpoint, [ids for ids, _ in items], layer):
        means[number] = _mean(monitor(found.to(checkpoint.device)), items[number][1])
    if not np.isfinite(means).all():
        raise RealignError("cannot read the answers", "activations on some are not finite")
    return means


def _mean(latents: Any, span: slice) -> NDArray[np.float32]:
    """The mean over an answer's tokens and the last one before, after which it begins; the first token is not read."""
    return np.asarray(latents[max(0, span.start - 2) : span.stop - 1].mean(dim=0).cpu())
