"""Bakes steering into weights, so that a plain checkpoint behaves as if it were steered.

A direction is ablated from every matrix that writes to the residual stream (Arditi et al. 2024, arXiv:2406.11717,
section 4.1), so that the stream never has a component along it; a vector is added as a bias. Before a weight is
changed, the same is done while the model runs, to see that on this architecture it has the effect that it should have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from realign.capture import decoder_layers
from realign.errors import RealignError
from realign.steering import Change, Clamp, Steering, ablate, add, check, hook, in_state

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor
    from torch.nn import Module, ModuleList
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint

# What architectures call the matrices of a layer that write to the residual stream, of attention and of the MLP.
_OUTPUTS = {"o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out"}
# Where a layer has the second of these norms (as in Gemma 2), both stand between a matrix and the stream.
_NORMS = {"o_proj": "post_attention_layernorm", "down_proj": "post_feedforward_layernorm"}
# A trial reads so many tokens.
_TRIAL = 16


@contextmanager
def ablated(checkpoint: Checkpoint, vector: ArrayLike) -> Iterator[None]:
    """Ablates a direction, within the block, wherever the model writes to its residual stream.

    The answers are those of the model with the direction baked out (`bake_ablation`), but for rounding. An adapter and
    its reference are told apart as in `steering.steered`.

    Args:
        vector: [width]; its length does not matter.

    Raises:
        RealignError: the vector does not fit the model, or something writes to the stream that realign does not know.
    """
    with checkpoint.active() as model:
        changes = _ablations(model, vector)
        _check_ablates(model, changes, vector)
    with _changed(model, changes, in_state(checkpoint)):
        yield


def bake_ablation(model: PreTrainedModel, vector: ArrayLike) -> None:
    """Takes a direction out of all that writes to the residual stream, in place: embeddings, attention, MLPs, biases.

    A head that is tied to the embedding keeps its weights: it gets a copy of its own, and the model's config says so.
    What an image tower writes to the stream stays.

    Args:
        model: in evaluation mode, without an adapter.
        vector: [width]; its length does not matter.

    Raises:
        RealignError: the vector does not fit the model, its weights cannot be changed (an adapter, quantised ones), or
            something writes to the stream that realign does not know. The model is as it was.
    """
    import torch

    changes = _ablations(model, vector)
    _check_plain(model)
    _check_ablates(model, changes, vector)
    _untie(model)
    for module, change in changes:
        direction = torch.as_tensor(change.write).to(model.device)
        for rows in _rows(module):
            wide = rows.float()
            rows.copy_(wide - (wide @ direction)[..., None] * direction)


def bake_addition(model: PreTrainedModel, vector: ArrayLike, layers: Sequence[int]) -> None:
    """Adds a vector to what some layers put out, for all tokens, in place: as a bias at the end of their MLPs.

    Where the MLPs have no bias but the config can give them one (as `mlp_bias` of Llama), it does, 0 where none is
    needed.

    Args:
        model: in evaluation mode, without an adapter.
        vector: [width], in units of the activations.
        layers: which layers, counted from 0.

    Raises:
        RealignError: the architecture has no such bias, or it does not go to the residual stream as it is; or the
            layers or the vector do not fit the model, or its weights cannot be changed. The model is as it was.
    """
    import torch

    steering = Steering(add(vector, 1.0), layers)
    check([steering], len(decoder_layers(model)), _width(model))
    _check_plain(model)
    check_addition(model)
    stack = decoder_layers(model)
    ends = _ends([stack[layer] for layer in layers])
    _check_adds(model, steering, ends)
    if any(end.bias is None for end in ends):
        _give_biases(stack)
        model.config.get_text_config(decoder=True).mlp_bias = True
    for end in ends:
        end.bias.data += torch.as_tensor(steering.change.vectors()[0]).to(end.bias.device, end.bias.dtype)


def check_addition(model: PreTrainedModel) -> None:
    """RealignError where the MLPs of a model have no bias that a vector could be added to, and cannot be given one."""
    lacking = any(end.bias is None for end in _ends(decoder_layers(model)))
    if lacking and not hasattr(model.config.get_text_config(decoder=True), "mlp_bias"):
        raise RealignError(
            f"cannot bake a vector into {type(model).__name__}",
            "its MLPs have no bias to add it to, and its config cannot give them one",
            "Ablate the direction instead, or add it while the model runs.",
        )


@dataclass(frozen=True, eq=False)
class _Writer:
    """A module whose output goes to the residual stream, as it is or through a norm."""

    module: Module
    norm: Module | None = None

    def ablation(self, unit: NDArray[np.float32]) -> Clamp:
        """What takes the direction out of what reaches the stream; before a norm, which scales each component first."""
        import torch

        if self.norm is None:
            return ablate(unit)
        weight: Any = next(self.norm.parameters())
        with torch.inference_mode():
            # All ones have a root mean square of 1, so that what comes out is the scale.
            scale = self.norm(torch.ones(len(unit), dtype=weight.dtype, device=weight.device))
        return ablate(unit * scale.float().cpu().numpy())


def _writers(model: PreTrainedModel) -> list[_Writer]:
    """All that writes to the residual stream: embeddings of tokens and positions, and the ends of attention and MLP."""
    import torch

    untyped: Any = model
    embeddings = [
        _Writer(module)
        for module in untyped.get_decoder().children()
        if isinstance(getattr(module, "base_layer", module), torch.nn.Embedding)  # with an adapter on it, or without
    ]
    return embeddings + [writer for layer in decoder_layers(model) for writer in _outputs(layer)]


def _outputs(layer: Module) -> list[_Writer]:
    """What writes to the stream in a layer, that of the MLP last."""
    normed = hasattr(layer, _NORMS["down_proj"])
    found = [(name.rpartition(".")[2], module) for name, module in layer.named_modules()]
    return [
        _Writer(module, getattr(layer, _NORMS[name]) if normed and name in _NORMS else None)
        for name, module in found
        if name in _OUTPUTS and hasattr(module, "weight")
    ]


def _ends(layers: Iterable[Module]) -> list[Any]:
    """The last linear module of each layer's MLP."""
    return [writer.module for layer in layers for writer in _outputs(layer)[-1:]]


def _ablations(model: PreTrainedModel, vector: ArrayLike) -> list[tuple[Module, Clamp]]:
    """What takes a direction out of the output of each module that writes to the stream."""
    unit = ablate(vector)
    check([Steering(unit, [0])], len(decoder_layers(model)), _width(model))
    return [(writer.module, writer.ablation(unit.write)) for writer in _writers(model)]


def _rows(module: Any) -> list[Tensor]:
    """A module's weights, each as [..., width] with what it writes last; what is done to them is done to the module."""
    import torch

    weight: Tensor = module.weight.data
    bias: Tensor | None = None if getattr(module, "bias", None) is None else module.bias.data
    return [weight.T if isinstance(module, torch.nn.Linear) else weight, *([] if bias is None else [bias])]


def _untie(model: PreTrainedModel) -> None:
    """Gives a head that shares the embedding's weights a copy of its own."""
    import torch

    untyped: Any = model
    head, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        for config in (model.config, model.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False


def _give_biases(stack: ModuleList) -> None:
    """A bias of 0 for each linear module of an MLP that has none."""
    import torch

    for layer in stack:
        untyped: Any = layer
        for module in untyped.mlp.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is None:
                zero = torch.zeros(module.out_features, dtype=module.weight.dtype, device=module.weight.device)
                module.bias = torch.nn.Parameter(zero, requires_grad=module.weight.requires_grad)


def _width(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[1])


def _check_plain(model: PreTrainedModel) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    what = f"cannot bake steering into {type(model).__name__}"
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise RealignError(what, "it has an adapter on it", "Merge the adapter first (PEFT's merge_and_unload).")
    if not all(rows.is_floating_point() for writer in _writers(model) for rows in _rows(writer.module)):
        raise RealignError(what, "its weights are quantised", "Open the checkpoint in bfloat16 or float32.")


@contextmanager
def _changed(
    model: PreTrainedModel, changes: Sequence[tuple[Module, Change]], when: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Changes what modules put out within the block."""
    with ExitStack() as hooks:
        for module, change in changes:
            hooks.callback(hook(module, [(change.on(model.device, model.dtype), None)], when))
        yield


def _check_ablates(model: PreTrainedModel, changes: Sequence[tuple[Module, Change]], vector: ArrayLike) -> None:
    """RealignError unless the changes leave nothing along the vector in the stream, but for rounding."""
    unit = ablate(vector).write
    before = _stream(model)
    with _changed(model, changes):
        after = _stream(model)
    # What each layer writes, and not what has come together: of that, what one layer writes may be a small part.
    left, whole = (np.linalg.norm(np.diff(stream @ unit, axis=0, prepend=0), axis=1) for stream in (after, before))
    sizes = np.linalg.norm(after, axis=(1, 2)) / np.sqrt(len(unit))
    _refuse(left <= _rounding(model, whole, sizes), model)


def _check_adds(model: PreTrainedModel, steering: Steering, ends: Sequence[Module]) -> None:
    """RealignError unless adding to what the modules put out is adding to what the layers put out."""
    stack = decoder_layers(model)
    with _changed(model, [(stack[layer], steering.change) for layer in steering.layers]):
        wanted = _stream(model)
    with _changed(model, [(end, steering.change) for end in ends]):
        apart = np.linalg.norm(_stream(model) - wanted, axis=2)
    size = float(np.linalg.norm(steering.change.vectors()[0]))
    _refuse(np.all(apart <= _rounding(model, size, np.linalg.norm(wanted, axis=2)), axis=1), model)


def _stream(model: PreTrainedModel) -> NDArray[np.float32]:
    """What comes to the first layer and what each puts out, for some tokens, [1 + layers, tokens, width]."""
    import torch

    found: list[Tensor] = []

    def begin(module: Module, given: Any) -> None:
        found.append(given[0][0].float().cpu())

    def read(module: Module, given: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0].float().cpu())

    stack = decoder_layers(model)
    with ExitStack() as hooks, torch.inference_mode():
        hooks.callback(stack[0].register_forward_pre_hook(begin).remove)
        for layer in stack:
            hooks.callback(layer.register_forward_hook(read).remove)
        untyped: Any = model
        untyped(input_ids=torch.arange(_TRIAL, device=model.device)[None], use_cache=False)
    return torch.stack(found).numpy()


def _rounding(model: PreTrainedModel, size: ArrayLike, whole: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far off a change of this size may be, where it is written to a stream of that size and is read from it."""
    import torch

    eps = torch.finfo(model.dtype).eps
    return np.asarray(np.maximum(np.sqrt(eps) * np.asarray(size), 4 * eps * whole), np.float64)


def _refuse(right: NDArray[np.bool_], model: PreTrainedModel) -> None:
    """RealignError unless all is right with the embedding and the layers; `right` has these in their order."""
    if not right.all():
        first = int(np.flatnonzero(~right)[0])
        raise RealignError(
            f"cannot bake steering into {type(model).__name__}",
            f"its {f'layer {first - 1}' if first else 'embedding'} writes in a way that realign does not know",
            "Steer its layers while it runs.",
        )
