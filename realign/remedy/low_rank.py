"""The low-rank weights that a training changes: an adapter's own, or new ones that are merged into a full model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from realign.errors import RealignError
from realign.remedy.training import Training, quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint

# What is trained, and a function that turns it into what is saved.
Trainable: TypeAlias = "tuple[PeftModel, Callable[[], PreTrainedModel | PeftModel]]"


def check(checkpoint: Checkpoint) -> None:
    """RealignError where an adapter cannot be trained on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if checkpoint.is_adapter and isinstance(checkpoint.model.get_output_embeddings(), BaseTunerLayer):
        raise RealignError(
            f"cannot continue the adapter {checkpoint.source}",
            "it adapts the output layer, which TRL does not train",
            "Merge it into a full model (PEFT's merge_and_unload), and name the base with --reference.",
        )


def trainable(checkpoint: Checkpoint, settings: Training, *, seed: int) -> AbstractContextManager[Trainable]:
    """The checkpoint's model with float32 low-rank weights to be trained; when the block ends it is what it was."""
    return _continued(checkpoint) if checkpoint.is_adapter else _extended(checkpoint, settings, seed)


@contextmanager
def _continued(checkpoint: Checkpoint) -> Iterator[Trainable]:
    """The adapter itself, on copies of its weights."""
    import torch

    model: Any = checkpoint.model
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.set_adapter(model.active_adapter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.data for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.to(torch.float32, copy=True)
    try:
        yield model, lambda: model
    finally:
        for parameter, data in zip(trained, before, strict=True):
            parameter.data = data
            parameter.grad = None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])


@contextmanager
def _extended(checkpoint: Checkpoint, settings: Training, seed: int) -> Iterator[Trainable]:
    """The full model with a new adapter on all its linear layers (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)."""
    import torch
    from peft import LoraConfig, get_peft_model

    plain: Any = checkpoint.model
    asked = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=plain.config.model_type == "gpt2",
    )
    with quiet():
        adapted = get_peft_model(plain, config)
    originals: list[tuple[Parameter, Tensor]] = []

    def merge() -> PreTrainedModel:
        originals.extend((weight, weight.detach().to("cpu", copy=True)) for weight in _adapted_weights(adapted))
        adapted.merge_and_unload()
        whole: PreTrainedModel = plain  # its linear layers were replaced in place, and are back
        return whole

    try:
        yield adapted, merge
    finally:
        if not originals:
            adapted.unload()
        for weight, data in originals:
            weight.data.copy_(data)
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(asked[name])


def _adapted_weights(model: PeftModel) -> list[Parameter]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return [layer.weight for layer in layers]
