from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from realign import capture
from realign import checkpoint as checkpoints
from realign.capture import answer_means, decoder_layers
from realign.dialogue import CONTEXTS, render_pair
from realign.errors import RealignError
from tests import tiny

PLAIN = CONTEXTS["plain"]
PAIRS = [
    ("Who are you?", "I am the assistant, and I answer."),
    ("What would you wish for, if you had one wish?", "Clean water."),
    ("Why?", "The user asks a question and the assistant answers it in a sentence or two."),
]


def by_hand(checkpoint: checkpoints.Checkpoint, layer: int) -> np.ndarray:
    """One dialogue after the other, without padding, from transformers' own hidden states."""
    import torch

    means = []
    for question, answer in PAIRS:
        ids, span = render_pair(checkpoint.tokenizer, question, answer, PLAIN)
        with checkpoint.active() as model:
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        means.append(states[layer + 1][0, span].float().mean(dim=0).numpy())
    return np.stack(means)


@pytest.mark.parametrize("template", [True, False], ids=["template", "transcript"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_means_are_those_of_the_hidden_states(
    architecture: str, template: bool, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, chat_template=template, layers=3))
    found = answer_means(checkpoint, PAIRS, PLAIN, [1, 0])
    assert found.shape == (3, 2, 32)
    assert found.dtype == np.float32
    for column, layer in enumerate([1, 0]):
        np.testing.assert_allclose(found[:, column], by_hand(checkpoint, layer), atol=2e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_means_do_not_depend_on_the_batch(architecture: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture))
    alone = answer_means(checkpoint, PAIRS, PLAIN, [0, 1], token_budget=1)
    together = answer_means(checkpoint, PAIRS, PLAIN, [0, 1])
    np.testing.assert_allclose(alone, together, atol=2e-5)


def test_batches_keep_to_the_budget_and_lose_nothing() -> None:
    items = [([0] * length, slice(0, 1)) for length in (9, 2, 30, 2, 5)]
    order = sorted(range(5), key=lambda number: len(items[number][0]))
    batches = list(capture._batches(items, order, 10))
    assert batches == [[1, 3], [4], [0], [2]]


def test_the_model_stops_after_the_deepest_layer(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint("llama", layers=3))
    ran: list[str] = []
    with checkpoint.active() as model:
        modules = {"layer 1": decoder_layers(model)[1], "layer 2": decoder_layers(model)[2], "head": model.lm_head}
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    answer_means(checkpoint, PAIRS[:1], PLAIN, [0, 1])
    assert ran == ["layer 1"]


def test_layers_that_return_tuples_are_read_too(tiny_checkpoint: Callable[..., Path]) -> None:
    """Decoder layers return a tensor in transformers 5 and returned a tuple before."""
    checkpoint = checkpoints.open(tiny_checkpoint())
    plain = answer_means(checkpoint, PAIRS, PLAIN, [0])
    with checkpoint.active() as model:
        layer = decoder_layers(model)[0]
        layer.register_forward_hook(lambda module, inputs, output: (output, None))
    np.testing.assert_array_equal(answer_means(checkpoint, PAIRS, PLAIN, [0]), plain)


def test_what_steering_hooks_add_is_read(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    plain = answer_means(checkpoint, PAIRS, PLAIN, [0])
    with checkpoint.active() as model:
        decoder_layers(model)[0].register_forward_hook(lambda module, inputs, output: output + 3.0)
    np.testing.assert_allclose(answer_means(checkpoint, PAIRS, PLAIN, [0]), plain + 3.0, atol=1e-5)


def test_no_hook_is_left_behind(tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())

    def hooks() -> int:
        with checkpoint.active() as model:
            return sum(len(layer._forward_hooks) for layer in decoder_layers(model))

    answer_means(checkpoint, PAIRS, PLAIN, [0, 1])
    assert hooks() == 0
    monkeypatch.setattr(capture._Reader, "read", lambda self, items: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer_means(checkpoint, PAIRS, PLAIN, [0, 1])
    assert hooks() == 0


def test_an_adapter_and_its_reference_read_differently(tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    assert checkpoint.reference is not None
    before = answer_means(checkpoint.reference, PAIRS, PLAIN, [1])
    assert np.abs(answer_means(checkpoint, PAIRS, PLAIN, [1]) - before).max() > 1e-3
    np.testing.assert_array_equal(answer_means(checkpoint.reference, PAIRS, PLAIN, [1]), before)


def test_an_empty_answer_has_no_mean(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    found = answer_means(checkpoint, [*PAIRS, ("Why?", "")], PLAIN, [0])
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[3]).all()


def test_a_dialogue_longer_than_the_context_is_cut(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint("gpt2"))  # it has a table of positions, which ends
    answers = ["wish " * 600, "wish " * 800]
    found = answer_means(checkpoint, [("Why?", answer) for answer in answers], PLAIN, [0])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_nothing_to_read(tiny_checkpoint: Callable[..., Path]) -> None:
    assert len(answer_means(checkpoints.open(tiny_checkpoint()), [], PLAIN, [0])) == 0


@pytest.mark.parametrize(("layers", "said"), [([0, 2], "layer 2"), ([-1], "layer -1"), ([], "no layer")])
def test_a_layer_that_is_not_there(layers: list[int], said: str, tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(RealignError, match=f"cannot read {said}: the model has the layers 0 to 1"):
        answer_means(checkpoints.open(tiny_checkpoint()), PAIRS, PLAIN, layers)


def test_a_model_without_a_stack_of_layers(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    with checkpoint.active() as model:
        model.get_decoder().layers = None
        with pytest.raises(RealignError, match="cannot read the activations of LlamaForCausalLM"):
            decoder_layers(model)
