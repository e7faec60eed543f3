"""Reads the residual stream: mean activations of answers, layer by layer, of any decoder with a stack of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from realign.dialogue import Context, render_pair
from realign.errors import RealignError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module, ModuleList
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint

# Most tokens, with padding, that are read in one forward pass.
TOKEN_BUDGET = 8192
# What architectures call their stack of decoder layers.
_STACKS = ("layers", "h", "blocks")

# A dialogue's tokens and the span of the answer's tokens in it.
_Item = tuple[list[int], slice]


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
) -> NDArray[np.float32]:
    """The mean activation of each answer: the output of decoder layers, averaged over the answer's tokens.

    Layer l is what the block l adds up to, before any final norm (transformers' `hidden_states[l + 1]`, except for the
    last). The model runs no further than the deepest layer asked for. Dialogues are padded on the right, where no token
    of theirs sees the padding. One that is longer than the model's context is cut off at its end.

    Args:
        checkpoint: whose weights read.
        pairs: questions and answers, [N].
        context: how the questions are put.
        layers: which layers, counted from 0.
        token_budget: most tokens, with padding, of one batch (but at least one dialogue).

    Returns:
        [N, len(layers), width], float32; NaN for an answer of which no token is read.

    Raises:
        RealignError: the model has no such layers, or its decoder layers are not found.
    """
    import torch

    items = [render_pair(checkpoint.tokenizer, question, answer, context) for question, answer in pairs]
    order = sorted(range(len(items)), key=lambda number: len(items[number][0]))
    means: dict[int, NDArray[np.float32]] = {}
    with checkpoint.active() as model, torch.inference_mode(), _Reader(model, layers) as reader:
        for batch in _batches(items, order, token_budget):
            found = reader.read([items[number] for number in batch]).cpu().numpy()
            means.update(zip(batch, found, strict=True))
    if not items:
        return np.empty((0, len(layers), 0), dtype=np.float32)
    return np.stack([means[number] for number in range(len(items))])


def _batches(items: Sequence[_Item], order: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Numbers of items in the order given, which rises in length, in groups whose padded size is within the budget."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(items[number][0]) > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _DeepEnough(Exception):  # noqa: N818  (it is no error)
    """Raised by the deepest layer's hook: nothing after it needs to be computed."""


class _Reader:
    """Hooks on the layers asked for, which pool what passes and end the forward pass after the deepest."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        from realign.kv_cache import context_length

        self._model = model
        self._stack = decoder_layers(model)
        wrong = [layer for layer in layers if not 0 <= layer < len(self._stack)]
        if wrong or not layers:
            what = f"layer {wrong[0]}" if wrong else "no layer"
            raise RealignError(f"cannot read {what}", f"the model has the layers 0 to {len(self._stack) - 1}")
        self._layers = list(layers)
        self._context = context_length(model)
        self._weights: Tensor | None = None
        self._pooled: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Reader:
        # Registered last, so that they see what hooks registered before them (steering) made of the output.
        for layer in set(self._layers):
            self._handles.append(self._stack[layer].register_forward_hook(self._hook(layer)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def read(self, items: Sequence[_Item]) -> Tensor:
        """Mean activations of a batch, [rows, layers, width] float32."""
        import torch

        width = min(self._context, max(len(ids) for ids, _ in items))
        padded = [ids[:width] + [0] * (width - len(ids)) for ids, _ in items]
        mask = [[1] * min(width, len(ids)) + [0] * (width - len(ids)) for ids, _ in items]
        spans = torch.zeros(len(items), width)
        for row, (_, span) in zip(spans, items, strict=True):
            row[span] = 1.0
        device = self._model.device
        self._weights = (spans / spans.sum(dim=1, keepdim=True)).to(device)
        with _stopped_early():
            self._model(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                use_cache=False,
            )
        return torch.stack([self._pooled[layer] for layer in self._layers], dim=1)

    def _hook(self, layer: int) -> Any:
        import torch

        deepest = layer == max(self._layers)

        def pool(module: Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            weights = self._weights
            assert weights is not None
            # Padding is excluded by its weight, but 0 * NaN is NaN: what a model makes of padding must not count.
            hidden = hidden.float().masked_fill((weights == 0)[..., None], 0.0)
            self._pooled[layer] = torch.bmm(weights[:, None], hidden)[:, 0]
            if deepest:
                raise _DeepEnough

        return pool


@contextmanager
def _stopped_early() -> Iterator[None]:
    try:
        yield
    except _DeepEnough:
        return
