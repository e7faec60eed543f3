"""Steers a model while it runs: adds to its residual stream, or clamps what can be read from it.

A change is made where a decoder layer puts out its activations, in place, on all tokens or on those of the prompt or
of the answer. Which these are is told by each token's position in its row, so that it makes no difference whether a
token is read in one pass with others or alone, after a cache, between padding or in a larger batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from realign.errors import RealignError

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor
    from torch.nn import Module

    from realign.checkpoint import Checkpoint

# Which tokens are steered; the answer begins with the first token after the prompt.
Tokens: TypeAlias = Literal["all", "prompt", "answer"]
# Changes activations, [rows, columns, width], in place; where there is a mask, [rows or 1, columns, 1], by as much.
_Act: TypeAlias = "Callable[[Tensor, Tensor | None], None]"

# How many tokens the prompt of each row has, [rows or 1, 1] int64, in the forward passes that are being made.
_lengths: ContextVar[Tensor | None] = ContextVar("prompt lengths", default=None)


@dataclass(frozen=True, eq=False)
class Add:
    """Adds a vector to each activation.

    Attributes:
        vector: [width], in units of the activations: a direction times the strength.
    """

    vector: NDArray[np.float32]

    def vectors(self) -> tuple[NDArray[np.float32], ...]:
        return (self.vector,)

    def on(self, device: torch.device, dtype: torch.dtype) -> _Act:
        import torch

        vector = torch.as_tensor(self.vector).to(device, dtype)

        def act(hidden: Tensor, mask: Tensor | None) -> None:
            if mask is None:
                hidden.add_(vector)
            else:
                hidden.addcmul_(mask, vector)

        return act


@dataclass(frozen=True, eq=False)
class Clamp:
    """Moves each activation along `write` by as much as what is read of it lacks of a value.

    Read is `activation @ read + bias`; where that is not above the threshold, 0. See `clamp`, `ablate`, `clamp_latent`.

    Attributes:
        read, write: [width].
        value: what is wanted.
        bias, threshold: of the reading; without a threshold it is linear.
    """

    read: NDArray[np.float32]
    write: NDArray[np.float32]
    value: float
    bias: float = 0.0
    threshold: float | None = None

    def vectors(self) -> tuple[NDArray[np.float32], ...]:
        return (self.read, self.write)

    def on(self, device: torch.device, dtype: torch.dtype) -> _Act:
        import torch

        read, write = (torch.as_tensor(vector).to(device, dtype) for vector in self.vectors())

        def act(hidden: Tensor, mask: Tensor | None) -> None:
            if self.threshold is None:
                lacking = (self.value - self.bias) - hidden @ read
            else:
                lacking = self.value - torch.nn.functional.threshold(hidden @ read + self.bias, self.threshold, 0.0)
            lacking = lacking[..., None]
            hidden.addcmul_(lacking if mask is None else lacking * mask, write)

        return act


Change: TypeAlias = Add | Clamp


@dataclass(frozen=True, eq=False)
class Steering:
    """A change of the activations that some layers put out.

    Attributes:
        change: what is done in each of the layers.
        layers: which, counted from 0; a vector that is added in several layers adds up.
        tokens: on which tokens; for others than "all" somebody has to tell where the prompts end (`prompt_lengths`).
    """

    change: Change
    layers: Sequence[int]
    tokens: Tokens = "all"


def add(vector: ArrayLike, strength: float) -> Add:
    """Adds a vector [width] times a strength; for a direction, the strength is in units of the activations."""
    return Add(np.asarray(vector, np.float32) * np.float32(strength))


def clamp(vector: ArrayLike, value: float) -> Clamp:
    """Gives all activations one projection on a vector [width], whose length does not matter.

    Raises:
        RealignError: the vector is zero.
    """
    unit = _unit(vector)
    return Clamp(unit, unit, value)


def ablate(vector: ArrayLike) -> Clamp:
    """Takes a direction [width] out of the activations; as `clamp` to 0."""
    return clamp(vector, 0.0)


def clamp_latent(encoder: ArrayLike, bias: float, decoder: ArrayLike, value: float, threshold: float = 0.0) -> Clamp:
    """Gives a latent of a sparse autoencoder one value; the rest of the activation, and what the SAE misses, stays.

    Args:
        encoder: [width], what the latent is read with from a raw activation: whatever the SAE does to activations
            first (its `b_dec`, a normalisation) has to be in it and in the bias.
        bias: of the reading.
        decoder: [width], what a latent of value 1 adds to a raw activation.
        value: what the latent shall be.
        threshold: at or below it the latent is 0: 0 for ReLU, the latent's own for JumpReLU and BatchTopK.
    """
    return Clamp(np.asarray(encoder, np.float32), np.asarray(decoder, np.float32), value, bias, threshold)


@contextmanager
def steered(checkpoint: Checkpoint, steerings: Sequence[Steering]) -> Iterator[None]:
    """Steers whatever the checkpoint does within the block, whoever runs it; of two changes in a layer, in their order.

    What other hooks read is the steered value, also those that were registered before. Where a reference is the same
    model with the adapter off, the one is steered and the other is not. Of nested blocks the inner one acts first.

    Raises:
        RealignError: the model has no such layers, or a vector is of another width or not finite.
        RuntimeError: (when the model runs) nobody tells where the prompts end, and not all tokens are steered.
    """
    from realign.capture import decoder_layers
    from realign.directions import residual_shape

    check(steerings, *residual_shape(checkpoint))
    untyped: Any = checkpoint.model
    stack = decoder_layers(untyped)
    mine = in_state(checkpoint)
    acts: dict[int, list[tuple[_Act, _Reach | None]]] = {}
    with ExitStack() as hooks:
        reaches: dict[Tokens, _Reach | None] = {"all": None}
        for steering in steerings:
            if steering.tokens not in reaches:
                reach = _Reach(untyped.get_decoder(), steering.tokens, untyped.dtype, mine)
                hooks.callback(reach.handle.remove)
                reaches[steering.tokens] = reach
            act = steering.change.on(checkpoint.device, untyped.dtype)
            for layer in steering.layers:
                acts.setdefault(layer, []).append((act, reaches[steering.tokens]))
        for layer, listed in acts.items():
            hooks.callback(hook(stack[layer], listed, mine))
        yield


def hook(module: Module, acts: Sequence[tuple[_Act, _Reach | None]], when: Callable[[], bool]) -> Callable[[], None]:
    """Lets changes act on what a module puts out, as long as `when` is true; returns what ends that."""

    def change(module: Module, given: Any, output: Any) -> None:
        if when():
            hidden = output[0] if isinstance(output, tuple) else output
            for act, reach in acts:
                act(hidden, None if reach is None else reach.mask)

    # Before all others, so that these read what it leaves.
    return module.register_forward_hook(change, prepend=True).remove


@contextmanager
def prompt_lengths(lengths: Sequence[int]) -> Iterator[None]:
    """Tells for the forward passes of any model within the block where the prompts end.

    Args:
        lengths: how many tokens each row's prompt has, without padding; a single number holds for all rows.
    """
    import torch

    told = _lengths.set(torch.tensor(lengths)[:, None])
    try:
        yield
    finally:
        _lengths.reset(told)


def in_state(checkpoint: Checkpoint) -> Callable[[], bool]:
    """Whether the model is in the checkpoint's state right now, its adapter on or (for an adapter's reference) off."""
    from realign.kv_cache import plain

    untyped: Any = checkpoint.model
    if plain(untyped) is untyped:
        return lambda: True
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = next(module for module in untyped.modules() if isinstance(module, BaseTunerLayer))
    return lambda: adapted.disable_adapters != checkpoint.is_adapter


def check(steerings: Sequence[Steering], depth: int, width: int) -> None:
    """RealignError where a model of this depth and width cannot be steered so."""
    for steering in steerings:
        wrong = [layer for layer in steering.layers if not 0 <= layer < depth]
        if wrong or not steering.layers:
            what = f"layer {wrong[0]}" if wrong else "no layer"
            raise RealignError(f"cannot steer {what}", f"the model has the layers 0 to {depth - 1}")
        for vector in steering.change.vectors():
            if vector.shape != (width,):
                why = f"its shape is {list(vector.shape)}, and the model's activations are {width} wide"
                raise RealignError("cannot steer with this vector", why, "Take one that was made from this model.")
            if not np.isfinite(vector).all():
                raise RealignError("cannot steer with this vector", "it is not finite", "Make it again.")


class _Reach:
    """Looks, once a forward pass, which of its tokens are steered.

    Attributes:
        mask: 1 for those and 0 for the others, [rows or 1, columns, 1].
        handle: its hook on the decoder.
    """

    def __init__(self, decoder: Module, tokens: Tokens, dtype: torch.dtype, when: Callable[[], bool]) -> None:
        self.mask: Tensor | None = None
        self._tokens, self._dtype, self._when = tokens, dtype, when
        self._names = list(inspect.signature(decoder.forward).parameters)
        self.handle = decoder.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._when():
            return
        given = dict(zip(self._names, args, strict=False)) | kwargs
        inputs = given.get("input_ids")
        rows, columns = (given["inputs_embeds"] if inputs is None else inputs).shape[:2]
        lengths = _lengths.get()
        if lengths is None or len(lengths) not in (1, rows):
            told = "nobody tells" if lengths is None else f"it was told of {len(lengths)} rows, not of {rows},"
            raise RuntimeError(f"cannot steer the {self._tokens} alone: {told} where its tokens begin or end")
        positions = _positions(given, columns)
        prompt = positions < lengths.to(positions.device)
        self.mask = (prompt if self._tokens == "prompt" else ~prompt)[..., None].to(self._dtype)


def _positions(given: Mapping[str, Any], columns: int) -> Tensor:
    """The position in its row of each token that a decoder is given, [rows or 1, columns]; of padding, any.

    They are those that it is given, or else, what the mask counts, or else, columns counted on from the cache's.
    """
    import torch

    positions: Tensor | None = given.get("position_ids")
    if positions is not None and positions.ndim == 2:
        return positions
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(dim=1) - 1)[:, -columns:]
    cache = given.get("past_key_values")
    seen = 0 if cache is None else cache.get_seq_length()
    inputs = given.get("input_ids")
    device = (given["inputs_embeds"] if inputs is None else inputs).device
    return torch.arange(columns, device=device)[None] + seen


def _unit(vector: ArrayLike) -> NDArray[np.float32]:
    given = np.asarray(vector, np.float64)
    norm = np.linalg.norm(given)
    if norm == 0:
        raise RealignError("cannot steer along a direction", "its vector is zero")
    return np.asarray(given / norm, np.float32)
