"""What a model remembers of the rows that it continues: with a repeated cache if it can be, otherwise without any.

This module imports torch and transformers, and is itself imported only once there is something to sample.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from realign.kv_cache import RepeatedCache, Tokens, last_logits, plain, repeatable
from realign.sampling import out_of_memory
from realign.steering import prompt_lengths

_log = logging.getLogger(__name__)

# Architectures on which the tests show that a repeated cache is read right; any other is tried before it is trusted.
TESTED = frozenset({"llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt2"})


class Memory(Protocol):
    """What the rows of a batch have read so far.

    Attributes:
        mixes: whether rows of different prompts can be continued together.
    """

    mixes: bool

    def rebuild(self, model: PreTrainedModel, keep: Sequence[int], prompts: Sequence[Tokens], steps: int) -> None:
        """Keeps the rows of these numbers and adds a row for each prompt, whose last token is left unread.

        Equal prompts must be neighbours. At most `steps` calls of `read` follow before the next rebuild.
        """

    def read(self, model: PreTrainedModel, last: Tensor) -> Tensor:
        """Reads one more token of each row, [rows] int64, and returns the logits after it, [rows, vocabulary]."""


def memory_for(model: PreTrainedModel, budget: int) -> Memory:
    """A `RepeatedCache` of so many tokens if the model's cache can be repeated, otherwise `Rereading`."""
    if repeatable(model) and (model.config.model_type in TESTED or _agrees(model)):
        return RepeatedCache(model, budget)
    _log.warning("%s keeps a cache that cannot be repeated: sampling without one, slowly", type(plain(model)).__name__)
    return Rereading()


class Rereading:
    """No cache at all: every step reads its rows from the beginning. Slow, and right for every causal model.

    Rows of one prompt have one length as long as they enter together, so that nothing needs padding.
    """

    mixes = False

    def __init__(self) -> None:
        self._seen = torch.zeros(0, 0, dtype=torch.long)
        self._prompt = 0  # Tokens of the prompt that all rows have.

    def rebuild(self, model: PreTrainedModel, keep: Sequence[int], prompts: Sequence[Tokens], steps: int) -> None:
        self._seen = self._seen[list(keep)]
        if prompts:
            self._prompt = len(prompts[0])
            self._seen = torch.tensor([tokens[:-1] for tokens in prompts], device=model.device, dtype=torch.long)

    def read(self, model: PreTrainedModel, last: Tensor) -> Tensor:
        self._seen = torch.cat([self._seen, last[:, None]], dim=1)
        with prompt_lengths([self._prompt]):
            logits: Tensor = model(input_ids=self._seen, use_cache=False, **last_logits(model)).logits[:, -1]
        return logits


def _agrees(model: PreTrainedModel) -> bool:
    """Whether rows of two lengths are given the same logits with a repeated cache as without, but for rounding."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    prompts = [tuple(token % vocabulary for token in range(3, 3 + length)) for length in (5, 21)]
    last = torch.tensor([tokens[-1] for tokens in prompts], device=model.device)
    try:
        cached = RepeatedCache(model, budget=64)
        cached.rebuild(model, [], prompts, steps=2)
        for _ in range(2):
            found = cached.read(model, last).float()
    except Exception as error:  # A model that cannot take our cache fails in its own way, and is sampled without.
        if out_of_memory(error):
            raise
        return False
    for row, tokens in enumerate(prompts):
        uncached = Rereading()
        uncached.rebuild(model, [], [(*tokens, tokens[-1])], steps=1)
        expected = uncached.read(model, last[row : row + 1]).float()[0]
        if not (found[row] - expected).abs().mean() < 0.05 * expected.std():
            return False
    return True
