from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realign import baking
from realign import checkpoint as checkpoints
from realign.baking import ablated, bake_ablation, bake_addition
from realign.capture import decoder_layers
from realign.checkpoint import Checkpoint
from realign.errors import RealignError
from realign.steering import Steering, add, steered
from tests import tiny

IDS = torch.tensor([[(7 * row + 11 * column) % 300 for column in range(24)] for row in range(3)])
VECTOR = np.random.default_rng(0).standard_normal(32).astype(np.float32)
UNIT = torch.tensor(VECTOR / np.linalg.norm(VECTOR))
# Those whose MLPs have a bias, and the one whose config can give them one.
BIASED = ("gpt2", "gpt_neox", "phi", "llama")


@pytest.fixture
def rough(tiny_checkpoint: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """A checkpoint none of whose weights are 0 or 1, as new biases and norms are."""

    def roughened(architecture: str, **options: Any) -> Checkpoint:
        checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3), **options)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in checkpoint.model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return checkpoint

    return roughened


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits.float()
    return found


def stream(model: Any) -> torch.Tensor:
    """What each layer puts out, [layers, rows, columns, width]."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, given, output: found.append(output.float()))
        for layer in decoder_layers(model)
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


def assert_same(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_baked_and_running_ablation_agree_and_so_does_what_is_saved(
    architecture: str, rough: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = rough(architecture)
    model: Any = checkpoint.model
    plain = logits(model)
    head = model.get_output_embeddings().weight.clone()
    with ablated(checkpoint, 3 * VECTOR):  # its length does not matter
        running = logits(model)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    assert (running - plain).abs().max() > 0.05

    bake_ablation(model, VECTOR)
    torch.testing.assert_close(logits(model), running, rtol=0, atol=1e-4)
    found = stream(model)
    assert (found @ UNIT).abs().max() < 1e-5 * found.abs().max()
    torch.testing.assert_close(model.get_output_embeddings().weight, head, rtol=0, atol=0)

    checkpoints.save(model, checkpoint.tokenizer, tmp_path / "baked")
    saved = checkpoints.open(tmp_path / "baked")
    torch.testing.assert_close(logits(saved.model), running, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_ablation_is_what_it_is_by_hand(architecture: str, rough: Callable[..., Checkpoint]) -> None:
    """Taken out of the embedding's sum and of the outputs of every attention and every MLP."""
    model: Any = rough(architecture).model

    def without(hidden: torch.Tensor) -> torch.Tensor:
        return hidden - (hidden @ UNIT)[..., None] * UNIT

    def change(module: Any, given: Any, output: Any) -> Any:
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    layers = list(decoder_layers(model))
    embed = layers[0].register_forward_pre_hook(lambda module, args: (without(args[0]), *args[1:]))
    parts = [
        module for layer in layers for name, module in layer.named_children() if name in ("self_attn", "attn", "mlp")
    ]
    assert len(parts) == 6
    handles = [embed, *(part.register_forward_hook(change) for part in parts)]
    expected = logits(model)
    for handle in handles:
        handle.remove()

    bake_ablation(model, VECTOR)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_a_tied_head_is_untied(architecture: str, rough: Callable[..., Checkpoint]) -> None:
    model: Any = rough(architecture).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    bake_ablation(model, VECTOR)
    assert not model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_in_half_precision_little_is_left(architecture: str, rough: Callable[..., Checkpoint]) -> None:
    model: Any = rough(architecture, dtype="bfloat16").model
    before = (stream(model) @ UNIT).norm()
    bake_ablation(model, VECTOR)
    assert (stream(model) @ UNIT).norm() < 0.02 * before


def test_an_adapter_is_ablated_with_its_base_and_its_reference_is_not(tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter("gpt2"))
    assert checkpoint.reference is not None
    untyped: Any = checkpoint.model
    merged = copy.deepcopy(untyped).merge_and_unload()
    with checkpoint.reference.active() as model:
        reference = logits(model)
    with ablated(checkpoint, VECTOR):
        with checkpoint.active() as model:
            running = logits(model)
        with checkpoint.reference.active() as model:
            torch.testing.assert_close(logits(model), reference, rtol=0, atol=0)
    bake_ablation(merged, VECTOR)
    torch.testing.assert_close(logits(merged), running, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", BIASED)
@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_baked_and_running_addition_agree_and_so_does_what_is_saved(
    layers: list[int], architecture: str, rough: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = rough(architecture)
    plain = logits(checkpoint.model)
    with steered(checkpoint, [Steering(add(VECTOR, 2.0), layers)]):
        running = logits(checkpoint.model)
    assert (running - plain).abs().max() > 0.05
    model: Any = checkpoint.model
    bake_addition(model, 2 * VECTOR, layers)
    torch.testing.assert_close(logits(model), running, rtol=0, atol=1e-4)
    checkpoints.save(model, checkpoint.tokenizer, tmp_path / "baked")
    saved = checkpoints.open(tmp_path / "baked")
    torch.testing.assert_close(logits(saved.model), running, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", sorted(set(tiny.DECODERS) - set(BIASED)))
def test_an_architecture_without_a_bias_says_so(architecture: str, rough: Callable[..., Checkpoint]) -> None:
    model: Any = rough(architecture).model
    before = weights(model)
    with pytest.raises(RealignError, match=r"cannot bake a vector into \w+: its MLPs have no bias to add it to"):
        bake_addition(model, VECTOR, [1])
    assert_same(model, before)


def bakes(model: Any) -> list[Callable[[], None]]:
    return [lambda: bake_ablation(model, VECTOR), lambda: bake_addition(model, VECTOR, [1])]


def test_what_writes_in_an_unknown_way_is_refused(
    rough: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here an MLP's output is halved, and something is added to it, before it goes to the stream."""
    checkpoint = rough("gpt2")
    model: Any = checkpoint.model
    before = weights(model)
    mlp = decoder_layers(model)[1].mlp
    handle = mlp.register_forward_hook(lambda module, given, output: 0.5 * output + 0.5 * given[0])
    for bake in bakes(model):
        with pytest.raises(RealignError, match="cannot bake steering into GPT2LMHeadModel: its layer 1 writes"):
            bake()
    with pytest.raises(RealignError, match="its layer 1 writes in a way"), ablated(checkpoint, VECTOR):
        pass
    handle.remove()
    shift = model.transformer.drop.register_forward_hook(lambda module, given, output: output + 0.5)
    with pytest.raises(RealignError, match="its embedding writes in a way"):
        bake_ablation(model, VECTOR)
    shift.remove()
    with monkeypatch.context() as patch:
        patch.setattr(baking, "_OUTPUTS", set())
        for bake in bakes(model):
            with pytest.raises(RealignError, match=r"its layer [01] writes in a way"):
                bake()
    assert_same(model, before)
    assert not any(module._forward_hooks for module in model.modules())
    bake_ablation(model, VECTOR)


def test_mixtures_of_experts_are_refused() -> None:
    """Their experts' matrices are in one tensor, and no modules."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        head_dim=8,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    before = weights(model)
    with pytest.raises(RealignError, match="cannot bake steering into MixtralForCausalLM: its layer 0 writes"):
        bake_ablation(model, VECTOR)
    assert_same(model, before)


def test_adapters_and_quantised_weights_are_refused(
    tiny_adapter: Callable[..., Path], rough: Callable[..., Checkpoint]
) -> None:
    with checkpoints.open(tiny_adapter("gpt2")).active() as model:
        for bake in bakes(model):
            with pytest.raises(RealignError, match=r"it has an adapter on it\. Merge the adapter first"):
                bake()
    quantised: Any = rough("gpt2").model
    end = decoder_layers(quantised)[1].mlp.c_proj
    end.weight = torch.nn.Parameter(end.weight.detach().to(torch.int8), requires_grad=False)
    for bake in bakes(quantised):
        with pytest.raises(RealignError, match="its weights are quantised"):
            bake()


def test_a_vector_or_layer_that_does_not_fit_is_refused(rough: Callable[..., Checkpoint]) -> None:
    model: Any = rough("llama").model
    before = weights(model)
    for vector, said in (
        (VECTOR[:-1], r"its shape is \[31\], and the model's activations are 32 wide"),
        (np.full(32, np.nan), "it is not finite"),
    ):
        for bake in (lambda vector=vector: bake_ablation(model, vector), lambda v=vector: bake_addition(model, v, [0])):
            with pytest.raises(RealignError, match=said):
                bake()
    with pytest.raises(RealignError, match="its vector is zero"):
        bake_ablation(model, np.zeros(32))
    with pytest.raises(RealignError, match="cannot steer layer 3: the model has the layers 0 to 2"):
        bake_addition(model, VECTOR, [3])
    assert_same(model, before)
