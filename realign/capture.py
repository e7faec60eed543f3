"""Reads the residual stream, layer by layer, of any decoder with a stack of layers.

Read are the mean over an answer, a prompt's last token, or every token, one text after the other. In each case the
model runs no further than the deepest layer asked for, and what is read is pooled where it was made, so that a batch
costs one move to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from realign.dialogue import Context, Prompt, render_pair
from realign.errors import RealignError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module, ModuleList
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint

# Most tokens, with padding, that are read in one forward pass.
TOKEN_BUDGET = 8192
# So many batches' worth of texts a stream takes in at once, to read those of about one length together.
_BATCHES_AHEAD = 16
# What architectures call their stack of decoder layers.
_STACKS = ("layers", "h", "blocks")

# On which side of the shorter texts of a batch the padding is. It does not change what is read.
Padding: TypeAlias = Literal["right", "left"]
# A text's tokens and the span of those that are read.
_Item: TypeAlias = tuple[list[int], slice]
# From a layer's output, [rows, columns, width], what is read of it, [read, width] float32.
_Pool: TypeAlias = "Callable[[Tensor], Tensor]"
# Makes the pool of a batch from each row's span of columns, how many columns there are, and the device.
_Pooling: TypeAlias = "Callable[[Sequence[slice], int, torch.device], _Pool]"


def decoder_layers(model: PreTrainedModel) -> ModuleList:
    """The decoder layers of a model, the first one first.

    Raises:
        RealignError: the model has none where models have them.
    """
    import torch

    untyped: Any = model
    decoder = untyped.get_decoder()
    for name in _STACKS:
        stack = getattr(decoder, name, None)
        if isinstance(stack, torch.nn.ModuleList) and len(stack):
            return stack
    raise RealignError(
        f"cannot read the activations of {type(model).__name__}", "its decoder layers are not where realign looks"
    )


def answer_means(
    checkpoint: Checkpoint,
    pairs: Sequence[tuple[str, str]],
    context: Context,
    layers: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
    padding: Padding = "right",
) -> NDArray[np.float32]:
    """The mean activation of each answer: the output of decoder layers, averaged over the answer's tokens.

    Layer l is what the block l adds up to, before any final norm (transformers' `hidden_states[l + 1]`, except for the
    last), as hooks on the layer leave it. A dialogue that is longer than the model's context is cut off at its end.

    Args:
        checkpoint: whose weights read.
        pairs: questions and answers, [N].
        context: how the questions are put.
        layers: which layers, counted from 0.
        token_budget: most tokens, with padding, of one batch (but at least one dialogue).
        padding: the side of the padding; what is read is the same.

    Returns:
        [N, len(layers), width], float32; NaN for an answer of which no token is read.

    Raises:
        RealignError: the model has no such layers, or its decoder layers are not found.
    """
    items = [render_pair(checkpoint.tokenizer, question, answer, context) for question, answer in pairs]
    return _one_each(_Reader(checkpoint, layers, padding), items, _means, token_budget)


def last_prompt_tokens(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt | Sequence[int]],
    layers: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
    padding: Padding = "right",
) -> NDArray[np.float32]:
    """The activation of each prompt's last token, the one after which the answer begins.

    Layers, token budget and padding are those of `answer_means`.

    Args:
        prompts: prompts, or their tokens, [N].

    Returns:
        [N, len(layers), width], float32.

    Raises:
        RealignError: a prompt is empty or longer than the model's context, the model has no such layers, or its
            decoder layers are not found.
    """
    reader = _Reader(checkpoint, layers, padding)
    texts = [_ids(prompt) for prompt in prompts]
    for number, (prompt, ids) in enumerate(zip(prompts, texts, strict=True)):
        if not 1 <= len(ids) <= reader.context:
            name = f'question "{prompt.question_id}"' if isinstance(prompt, Prompt) else f"prompt {number}"
            why = f"its prompt has {len(ids)} tokens and the model's context holds {reader.context}"
            raise RealignError(f"cannot read the last token of {name}", why, "Change it, or leave it out.")
    items = [(ids, slice(len(ids) - 1, len(ids))) for ids in texts]
    return _one_each(reader, items, _tokens, token_budget)


def all_tokens(
    checkpoint: Checkpoint,
    texts: Iterable[Prompt | Sequence[int]],
    layers: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
    padding: Padding = "right",
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The activations of every token, text by text, in a stream that holds a few batches, however many texts come.

    Layers, token budget and padding are those of `answer_means`. Texts are taken in a few batches' worth at a time and
    come out in another order within these. One that is longer than the model's context is cut off at its end, one
    without tokens is passed over.

    Args:
        texts: tokens of texts, or prompts; they may be without end.

    Yields:
        The text's number, counted from 0, and its activations, [tokens, len(layers), width] float32. They are a part of
        their batch's array: copy what you keep.

    Raises:
        RealignError: the model has no such layers, or its decoder layers are not found.
    """
    return _stream(_Reader(checkpoint, layers, padding), texts, token_budget)


def _one_each(reader: _Reader, items: Sequence[_Item], pooling: _Pooling, budget: int) -> NDArray[np.float32]:
    """What is read of each item by a pooling that gives one vector a row, in the items' order."""
    found: dict[int, NDArray[np.float32]] = {}
    for batch in _batches(items, budget):
        found.update(zip(batch, reader.read([items[number] for number in batch], pooling), strict=True))
    if not items:
        return np.empty((0, len(reader.layers), 0), dtype=np.float32)
    return np.stack([found[number] for number in range(len(items))])


def _stream(
    reader: _Reader, texts: Iterable[Prompt | Sequence[int]], budget: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for numbers, items in _windows(texts, _BATCHES_AHEAD * budget):
        for batch in _batches(items, budget):
            found = reader.read([items[place] for place in batch], _tokens)
            ends = np.cumsum([min(len(items[place][0]), reader.context) for place in batch])
            yield from zip([numbers[place] for place in batch], np.split(found, ends[:-1]), strict=True)


def _windows(texts: Iterable[Prompt | Sequence[int]], tokens: int) -> Iterator[tuple[list[int], list[_Item]]]:
    """Numbers of texts that have tokens, with their items, in groups that are closed at so many tokens."""
    window: dict[int, _Item] = {}
    held = 0
    for number, text in enumerate(texts):
        if ids := _ids(text):
            window[number] = ids, slice(0, len(ids))
            held += len(ids)
        if held >= tokens:
            yield list(window), list(window.values())
            window, held = {}, 0
    if window:
        yield list(window), list(window.values())


def _ids(text: Prompt | Sequence[int]) -> list[int]:
    return list(text.ids if isinstance(text, Prompt) else text)


def _batches(items: Sequence[_Item], budget: int) -> Iterator[list[int]]:
    """Numbers of items, the short ones first, in groups whose padded size is within the budget."""
    batch: list[int] = []
    for number in sorted(range(len(items)), key=lambda number: len(items[number][0])):
        if batch and (len(batch) + 1) * len(items[number][0]) > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _means(spans: Sequence[slice], columns: int, device: torch.device) -> _Pool:
    """The mean over each row's span; NaN where it is empty."""
    import torch

    weights = torch.zeros(len(spans), columns)
    for row, span in zip(weights, spans, strict=True):
        row[span] = 1.0
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(device)
    # What is not read is excluded by its weight, but 0 * NaN is NaN: what a model makes of padding must not count.
    unread = (weights == 0)[..., None]
    return lambda hidden: torch.bmm(weights[:, None], hidden.float().masked_fill(unread, 0.0))[:, 0]


def _tokens(spans: Sequence[slice], columns: int, device: torch.device) -> _Pool:
    """The tokens of the rows' spans, row after row."""
    import torch

    ranges = [torch.arange(row * columns + span.start, row * columns + span.stop) for row, span in enumerate(spans)]
    places = torch.cat(ranges).to(device)
    return lambda hidden: hidden.flatten(0, 1)[places].float()


class _DeepEnough(Exception):  # noqa: N818  (it is no error)
    """Raised by the deepest layer's hook: nothing after it needs to be computed."""


class _Reader:
    """Reads batches through hooks on the layers asked for, and ends the forward pass after the deepest.

    Attributes:
        layers: the layers that are read.
        context: the most tokens of a text that are read.
    """

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[int], padding: Padding) -> None:
        from realign.kv_cache import context_length

        with checkpoint.active() as model:
            depth = len(decoder_layers(model))
            self.context = context_length(model)
        wrong = [layer for layer in layers if not 0 <= layer < depth]
        if wrong or not layers:
            what = f"layer {wrong[0]}" if wrong else "no layer"
            raise RealignError(f"cannot read {what}", f"the model has the layers 0 to {depth - 1}")
        self.layers = list(layers)
        self._checkpoint = checkpoint
        self._left = padding == "left"

    def read(self, items: Sequence[_Item], pooling: _Pooling) -> NDArray[np.float32]:
        """What the pooling reads of a batch, [read, layers, width]."""
        import torch

        # Active for one batch at a time: between two of them the caller may want the reference.
        with self._checkpoint.active() as model:
            inputs, spans = self._padded(items, model.device)
            pool = pooling(spans, inputs["input_ids"].shape[1], model.device)
            found = self._run(model, inputs, pool)
            return torch.stack([found[layer] for layer in self.layers], dim=1).cpu().numpy()

    def _padded(self, items: Sequence[_Item], device: torch.device) -> tuple[dict[str, Tensor], list[slice]]:
        """A batch as the model takes it, each [rows, columns] int64, and the columns that are read of each row."""
        import torch

        columns = min(self.context, max(len(ids) for ids, _ in items))
        padded, mask, spans = [], [], []
        for ids, span in items:
            length = min(columns, len(ids))
            left, right = (columns - length, 0) if self._left else (0, columns - length)
            padded.append([0] * left + ids[:length] + [0] * right)
            mask.append([0] * left + [1] * length + [0] * right)
            spans.append(slice(left + min(span.start, length), left + min(span.stop, length)))
        inputs = {"input_ids": torch.tensor(padded, device=device), "attention_mask": torch.tensor(mask, device=device)}
        if self._left:  # Padded on the right, a token's column is its position, which the model takes it for.
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_(min=0)
        return inputs, spans

    def _run(self, model: PreTrainedModel, inputs: dict[str, Tensor], pool: _Pool) -> dict[int, Tensor]:
        """What the pool makes of each layer's output, by layer."""
        stack = decoder_layers(model)
        found: dict[int, Tensor] = {}

        def hook(layer: int) -> Callable[[Module, Any, Any], None]:
            def read(module: Module, given: Any, output: Any) -> None:
                found[layer] = pool(output[0] if isinstance(output, tuple) else output)
                if layer == max(self.layers):
                    raise _DeepEnough

            return read

        with ExitStack() as hooks:
            # Registered anew for each batch, so that they come last and see what all other hooks (steering) made of
            # the output, whenever those were registered.
            for layer in set(self.layers):
                hooks.callback(stack[layer].register_forward_hook(hook(layer)).remove)
            with suppress(_DeepEnough):
                model(**inputs, use_cache=False)
        return found
