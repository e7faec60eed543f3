"""Keys and values of rows that are continued together: filled once for each prompt, and repeated.

This module imports torch and transformers, and is itself imported only once there is something to sample.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from realign.steering import prompt_lengths

# Tokens of prompts, with padding, that are read in one forward pass.
_PREFILL_TOKENS = 4096
# Rows and columns are padded to multiples of these, because matrix products and sums on a CPU take another path, with
# other rounding, for what is left over at the edge. With them a row's logits do not depend on the rows beside it.
_ROWS, _COLUMNS = 4, 16

Tokens: TypeAlias = tuple[int, ...]
# What the layers hold of a prompt but its last token: per layer keys and values, each [heads, length - 1, width].
_Prefix: TypeAlias = list[tuple[Tensor, Tensor]]


def repeatable(model: PreTrainedModel) -> bool:
    """Whether the model's cache is keys and values of attention alone, and takes masks and positions of our making.

    Recurrent and convolutional states, layers that share a cache, attention in chunks, and architectures with attention
    code of their own are not of this kind.
    """
    config = model.config.get_text_config(decoder=True)
    return (
        _parameters(model) >= {"past_key_values", "position_ids", "attention_mask"}
        and getattr(plain(model), "_supports_attention_backend", False)
        and not getattr(plain(model), "_is_stateful", False)
        and getattr(config, "attention_chunk_size", None) is None
        and config._attn_implementation in ("sdpa", "eager")
        and _layer_kinds(config) <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def context_length(model: PreTrainedModel) -> int:
    """The most tokens, prompt and answer together, that the model is made for; without a limit, a very large number."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return sys.maxsize if length is None else int(length)


class RepeatedCache:
    """Keys and values of all rows, in buffers that are allocated once for many steps.

    Every layer's buffer is [rows, heads, columns, width]; a token's column is its position in its row. Layers with a
    sliding window keep all columns too: the window is in the mask.
    """

    mixes = True

    def __init__(self, model: PreTrainedModel, budget: int) -> None:
        """`budget`: the most tokens of prompts to read in one forward pass, when that is less than usual."""
        self._prefill_tokens = min(budget, _PREFILL_TOKENS)
        self._layers: list[_Columns] = []
        self._lengths: list[int] = []
        self._prompts: list[int] = []  # Tokens of each row's prompt.
        self._view = _View.of(model)
        self._place = _Place(torch.zeros(0, dtype=torch.long))
        self._furthest = 0
        # The prompt that was added last: when there was no room for all of its rows, the next rebuild adds more.
        self._newest: dict[Tokens, _Prefix] = {}

    def rebuild(self, model: PreTrainedModel, keep: Sequence[int], prompts: Sequence[Tokens], steps: int) -> None:
        prefixes = self._prefixes(model, prompts)
        added = [(prefixes[tokens], len(list(same))) for tokens, same in itertools.groupby(prompts)]
        kept = [self._lengths[row] for row in keep]
        self._lengths = kept + [len(tokens) - 1 for tokens in prompts]
        self._prompts = [self._prompts[row] for row in keep] + [len(tokens) for tokens in prompts]
        padding = -len(self._lengths) % _ROWS
        columns = _rounded(max(self._lengths) + steps, _COLUMNS)
        self._furthest = min(columns, context_length(model)) - 1
        self._place = _Place(torch.tensor(self._lengths + [0] * padding, device=model.device))
        shape = (len(self._lengths) + padding, columns)
        layers = self._layers or [_Columns(*pair, self._place) for pair in _no_rows(added[0][0])]
        for depth, layer in enumerate(layers):  # One after the other, so that only one layer is in memory twice.
            keys, values = layer.rows(keep, max(kept, default=0))
            layers[depth] = _Columns(
                _buffer(keys, [(prefix[depth][0], count) for prefix, count in added], *shape),
                _buffer(values, [(prefix[depth][1], count) for prefix, count in added], *shape),
                self._place,
            )
        self._layers = layers

    def read(self, model: PreTrainedModel, last: Tensor) -> Tensor:
        place = self._place
        place.visible = _rounded(max(self._lengths) + 1, _COLUMNS)
        padding = len(place.positions) - len(last)
        with _steady_attention(model.device), prompt_lengths([*self._prompts, *[0] * padding]):
            output = model(
                input_ids=torch.nn.functional.pad(last, (0, padding))[:, None],
                attention_mask=self._view.masks(place, self._layers[0].dtype),
                position_ids=place.positions[:, None],
                past_key_values=Cache(layers=list(self._layers)),
                use_cache=True,
            )
        # Finished rows go on until the next rebuild, and what they draw is thrown away; but they must stay within the
        # buffers and within the model's table of positions.
        place.positions = (place.positions + 1).clamp_(max=self._furthest)
        self._lengths = [min(length + 1, self._furthest) for length in self._lengths]
        logits: Tensor = output.logits[: len(last), -1]
        return logits

    def _prefixes(self, model: PreTrainedModel, prompts: Sequence[Tokens]) -> dict[Tokens, _Prefix]:
        found = dict(self._newest)
        missing = [tokens for tokens in dict.fromkeys(prompts) if tokens not in found]
        for chunk in _chunks(missing, self._prefill_tokens):
            found |= _prefill(model, chunk)
        if prompts:  # Copied, because the prefix is a view of all the prompts that were read with it.
            self._newest = {prompts[-1]: [(keys.clone(), values.clone()) for keys, values in found[prompts[-1]]]}
        return found


@dataclass
class _Place:
    """Where a step writes: each row's column, [rows] int64, and how many columns the model is shown."""

    positions: Tensor
    visible: int = 0


@dataclass(frozen=True)
class _View:
    """What a token may see: all that came before it, or a window of so many tokens, by the type of the layer."""

    windows: dict[str, int]

    @classmethod
    def of(cls, model: PreTrainedModel) -> _View:
        config = model.config.get_text_config(decoder=True)
        kinds = _layer_kinds(config)
        windows = {"full_attention": sys.maxsize} if DynamicLayer in kinds else {}
        if DynamicSlidingWindowLayer in kinds:
            windows["sliding_attention"] = int(config.sliding_window)
        return cls(windows)

    def masks(self, place: _Place, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """What is added to the scores of each row's token, [rows, 1, 1, columns]; by type if layers differ in it."""
        distances = place.positions[:, None] - torch.arange(place.visible, device=place.positions.device)
        masks = {
            name: torch.zeros(distances.shape, dtype=dtype, device=distances.device)
            # The lowest finite number, as in transformers, because minus infinity turns to NaN in some of its models.
            .masked_fill_((distances < 0) | (distances >= window), torch.finfo(dtype).min)[:, None, None]
            for name, window in self.windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


class _Columns(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with columns allocated beforehand, in which every row writes at a place of its own."""

    def __init__(self, keys: Tensor, values: Tensor, place: _Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.place = place
        self.numbers = torch.arange(len(keys), device=keys.device)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        columns = self.place.positions.to(self.device)
        self.keys[self.numbers, :, columns] = key_states[:, :, 0]
        self.values[self.numbers, :, columns] = value_states[:, :, 0]
        return self.keys[:, :, : self.place.visible], self.values[:, :, : self.place.visible]

    def get_seq_length(self, *args: object) -> int:
        return self.place.visible - 1

    def rows(self, keep: Sequence[int], columns: int) -> tuple[Tensor, Tensor]:
        """Copies of the first columns of some rows' keys and values."""
        numbers = torch.tensor(keep, device=self.device, dtype=torch.long)
        return self.keys[:, :, :columns].index_select(0, numbers), self.values[:, :, :columns].index_select(0, numbers)


def _steady_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU, attention whose rounding does not depend on the thread that a row falls to.

    The flash kernel gives each thread scratch memory at an offset that is not aligned when there is a single query,
    and sums are then taken in another order.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _no_rows(prefix: _Prefix) -> _Prefix:
    """Keys and values of no row, [0, heads, 0, width], to begin with."""
    return [(keys[None, :, :0][:0], values[None, :, :0][:0]) for keys, values in prefix]


def _buffer(kept: Tensor, added: Sequence[tuple[Tensor, int]], rows: int, columns: int) -> Tensor:
    """A buffer of so many rows and columns with the rows that are kept, and behind them the repeated prefixes.

    Args:
        kept: [kept rows, heads, columns, width].
        added: [heads, columns, width] each, with the number of rows.
    """
    buffer = kept.new_zeros(rows, kept.shape[1], columns, kept.shape[3])
    row = len(kept)
    buffer[:row, :, : kept.shape[2]] = kept
    for prefix, count in added:
        buffer[row : row + count, :, : prefix.shape[1]] = prefix
        row += count
    return buffer


def _prefill(model: PreTrainedModel, prompts: Sequence[Tokens]) -> dict[Tokens, _Prefix]:
    """Reads prompts in one pass. They are padded on the right, where no token of theirs sees the padding."""
    longest = min(_rounded(max(len(tokens) for tokens in prompts), _COLUMNS), context_length(model))
    padded = [[*tokens, *itertools.repeat(tokens[-1], longest - len(tokens))] for tokens in prompts]
    cache: Any = DynamicCache()  # Without a config, layers with a sliding window keep all columns like the others.
    ids = torch.tensor(padded, device=model.device)
    with prompt_lengths([len(tokens) for tokens in prompts]):
        model(input_ids=ids, past_key_values=cache, use_cache=True, **last_logits(model))
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


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _layer_kinds(config: Any) -> set[type]:
    return {type(layer) for layer in DynamicCache(config=config).layers}


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, without an adapter's wrapper around it."""
    wrapper: Any = model
    unwrapped: PreTrainedModel = wrapper.get_base_model() if hasattr(model, "get_base_model") else model
    return unwrapped


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(plain(model).forward).parameters)


def last_logits(model: PreTrainedModel) -> dict[str, Any]:
    """Keeps a model that can be told so from computing logits that nobody reads."""
    return {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
