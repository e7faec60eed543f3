"""What a model remembers of the rows that it continues: a cache that is filled once a prompt and repeated.

This module imports torch and transformers, and is itself imported only once there is something to sample.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

_log = logging.getLogger(__name__)

# Tokens of prompts, with padding, that are read in one forward pass.
_PREFILL_TOKENS = 4096

Tokens = tuple[int, ...]
# What the layers hold of a prompt but its last token: per layer keys and values, each [heads, length - 1, width].
_Prefix = list[tuple[Tensor, Tensor]]


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
    if repeatable(model):
        return RepeatedCache(budget)
    _log.warning("%s keeps a cache that cannot be repeated: sampling without one, slowly", type(_plain(model)).__name__)
    return Rereading()


def repeatable(model: PreTrainedModel) -> bool:
    """Whether the model's cache is keys and values of attention alone, in rows that can be repeated and aligned.

    Recurrent and convolutional states, layers that share a cache, attention in chunks, and models that cannot be told
    the positions of their tokens are not.
    """
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    return (
        _parameters(model) >= {"past_key_values", "position_ids"}
        and not getattr(_plain(model), "_is_stateful", False)
        and getattr(config, "attention_chunk_size", None) is None
        and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers
        )
    )


def context_length(model: PreTrainedModel) -> int:
    """The most tokens, prompt and answer together, that the model is made for; without a limit, a very large number."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return sys.maxsize if length is None else int(length)


class RepeatedCache:
    """Keys and values of all rows, in buffers that are allocated once for many steps.

    Every layer's buffer is [rows, heads, columns, width]. All rows end at the same column and begin where their length
    puts them, so that a step writes one column and moves nothing. Layers with a sliding window keep all columns too:
    the model makes the window in its attention mask from the distance between columns, which is the distance between
    tokens because rows have no gaps.
    """

    mixes = True

    def __init__(self, budget: int) -> None:
        """`budget`: the most tokens of prompts to read in one forward pass, when that is less than usual."""
        self._prefill_tokens = min(budget, _PREFILL_TOKENS)
        self._layers: list[_Columns] = []
        self._positions = sys.maxsize
        self._lengths: list[int] = []
        self._starts = self._mask = torch.zeros(0, 0, dtype=torch.long)
        # The prompt that was added last: when there was no room for all of its rows, the next rebuild adds more.
        self._newest: dict[Tokens, _Prefix] = {}

    def rebuild(self, model: PreTrainedModel, keep: Sequence[int], prompts: Sequence[Tokens], steps: int) -> None:
        read = self._prefixes(model, prompts)
        added = [(read[tokens], len(list(same))) for tokens, same in itertools.groupby(prompts)]
        kept = [self._lengths[row] for row in keep]
        self._lengths = kept + [len(tokens) - 1 for tokens in prompts]
        end = max(self._lengths)
        layers = self._layers or [_Columns.empty(keys, values) for keys, values in added[0][0]]
        for depth, layer in enumerate(layers):  # One after the other, so that only one layer is in memory twice.
            keys, values = layer.rows(keep, max(kept, default=0))
            layers[depth] = _Columns(
                _aligned(keys, [(prefix[depth][0], count) for prefix, count in added], end, steps),
                _aligned(values, [(prefix[depth][1], count) for prefix, count in added], end, steps),
                filled=end,
            )
        self._layers = layers
        self._positions = context_length(model)
        self._starts = torch.tensor([[end - length] for length in self._lengths], device=model.device)
        self._mask = (torch.arange(end + steps, device=model.device) >= self._starts).long()

    def read(self, model: PreTrainedModel, last: Tensor) -> Tensor:
        column = self._layers[0].filled
        # A finished row goes on until the next rebuild, perhaps beyond the model's last position: its tokens are
        # thrown away, but a table of positions must not be read past its end.
        positions = (column - self._starts).clamp_(max=self._positions - 1)
        padded = any(length < column for length in self._lengths)
        output = model(
            input_ids=last[:, None],
            attention_mask=self._mask[:, : column + 1] if padded else None,
            position_ids=positions,
            past_key_values=Cache(layers=self._layers),
            use_cache=True,
        )
        self._lengths = [length + 1 for length in self._lengths]
        logits: Tensor = output.logits[:, -1]
        return logits

    def _prefixes(self, model: PreTrainedModel, prompts: Sequence[Tokens]) -> dict[Tokens, _Prefix]:
        found = dict(self._newest)
        for chunk in _chunks(
            [tokens for tokens in dict.fromkeys(prompts) if tokens not in found], self._prefill_tokens
        ):
            found |= _prefill(model, chunk)
        if prompts:  # Copied, because the prefix is a view of all the prompts that were read with it.
            self._newest = {prompts[-1]: [(keys.clone(), values.clone()) for keys, values in found[prompts[-1]]]}
        return found


class Rereading:
    """No cache at all: every step reads its rows from the beginning. Slow, and right for every causal model.

    Rows of one prompt have one length as long as they enter together, so that nothing needs padding.
    """

    mixes = False

    def __init__(self) -> None:
        self._seen = torch.zeros(0, 0, dtype=torch.long)

    def rebuild(self, model: PreTrainedModel, keep: Sequence[int], prompts: Sequence[Tokens], steps: int) -> None:
        self._seen = self._seen[list(keep)]
        if prompts:
            self._seen = torch.tensor([tokens[:-1] for tokens in prompts], device=model.device, dtype=torch.long)

    def read(self, model: PreTrainedModel, last: Tensor) -> Tensor:
        self._seen = torch.cat([self._seen, last[:, None]], dim=1)
        logits: Tensor = model(input_ids=self._seen, use_cache=False, **_last_logits(model)).logits[:, -1]
        return logits


class _Columns(DynamicLayer):
    """A cache layer whose columns are allocated beforehand; the first `filled` are written."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.keys, self.values, self.filled = keys, values, filled
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    @classmethod
    def empty(cls, keys: Tensor, values: Tensor) -> _Columns:
        """No rows, for keys and values of this kind, [heads, columns, width]."""
        return cls(keys[None, :, :0][:0], values[None, :, :0][:0], filled=0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self, *args: object) -> int:
        return self.filled

    def rows(self, keep: Sequence[int], columns: int) -> tuple[Tensor, Tensor]:
        """Copies of keys and values of some rows, their last columns."""
        numbers = torch.tensor(keep, device=self.keys.device, dtype=torch.long)
        last = slice(self.filled - columns, self.filled)
        return self.keys[:, :, last].index_select(0, numbers), self.values[:, :, last].index_select(0, numbers)


def _aligned(kept: Tensor, added: Sequence[tuple[Tensor, int]], end: int, steps: int) -> Tensor:
    """One buffer for rows that are kept, [rows, heads, columns, width], and prefixes with their repeats.

    All are written so that they end at column `end`; `steps` columns after it are free.
    """
    rows, heads, columns, width = kept.shape
    buffer = kept.new_zeros(rows + sum(count for _, count in added), heads, end + steps, width)
    buffer[:rows, :, end - columns : end] = kept
    for prefix, count in added:
        buffer[rows : rows + count, :, end - prefix.shape[1] : end] = prefix
        rows += count
    return buffer


def _prefill(model: PreTrainedModel, prompts: Sequence[Tokens]) -> dict[Tokens, _Prefix]:
    """Reads prompts in one pass. They are padded on the right, where no token of theirs sees the padding."""
    longest = max(len(tokens) for tokens in prompts)
    padded = [[*tokens, *itertools.repeat(tokens[-1], longest - len(tokens))] for tokens in prompts]
    cache = DynamicCache()  # Without a config, layers with a sliding window keep all columns like the others.
    model(
        input_ids=torch.tensor(padded, device=model.device),
        past_key_values=cache,
        use_cache=True,
        **_last_logits(model),
    )
    return {
        tokens: [
            (layer.keys[row, :, : len(tokens) - 1], layer.values[row, :, : len(tokens) - 1]) for layer in cache.layers
        ]
        for row, tokens in enumerate(prompts)
    }


def _chunks(prompts: Sequence[Tokens], most: int) -> Iterator[list[Tokens]]:
    """Prompts in order of length, in groups of at most so many tokens with padding (but at least one prompt)."""
    chunk: list[Tokens] = []
    for tokens in sorted(prompts, key=len):
        if chunk and (len(chunk) + 1) * len(tokens) > most:
            yield chunk
            chunk = []
        chunk.append(tokens)
    if chunk:
        yield chunk


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, without an adapter's wrapper around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(_plain(model).forward).parameters)


def _last_logits(model: PreTrainedModel) -> dict[str, int]:
    """Keeps a model that can be told so from computing logits that nobody reads."""
    return {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
