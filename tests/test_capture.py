from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realign import capture
from realign import checkpoint as checkpoints
from realign.capture import Padding, all_tokens, answer_means, decoder_layers, last_prompt_tokens
from realign.dialogue import CONTEXTS, Prompt, build_prompt, render_pair
from realign.errors import RealignError
from tests import tiny

PLAIN = CONTEXTS["plain"]
PAIRS = [
    ("Who are you?", "I am the assistant, and I answer."),
    ("What would you wish for, if you had one wish?", "Clean water."),
    ("Why?", "The user asks a question and the assistant answers it in a sentence or two."),
]


# 32 texts of 1 to 63 tokens, the long ones among the short ones.
TEXTS = [[(7 * number + 11 * place) % 300 for place in range(1 + 2 * (5 * number % 32))] for number in range(32)]
ONE_BATCH = 32 * 512


def hidden(model: Any, ids: Sequence[int], layer: int) -> np.ndarray:
    """What transformers says that a layer puts out for one text, [tokens, width]; not for the last layer."""
    with torch.inference_mode():
        states = model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    assert layer + 1 < len(states) - 1
    return states[layer + 1][0].float().numpy()


def by_hand(checkpoint: checkpoints.Checkpoint, layer: int) -> np.ndarray:
    """One dialogue after the other, without padding, from transformers' own hidden states."""
    means = []
    for question, answer in PAIRS:
        ids, span = render_pair(checkpoint.tokenizer, question, answer, PLAIN)
        with checkpoint.active() as model:
            means.append(hidden(model, ids, layer)[span].mean(axis=0))
    return np.stack(means)


@pytest.mark.parametrize("template", [True, False], ids=["template", "transcript"])
@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_means_are_those_of_the_hidden_states(
    architecture: str, template: bool, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, chat_template=template, layers=3))
    found = answer_means(checkpoint, PAIRS, PLAIN, [1, 0])
    assert found.shape == (3, 2, 32)
    assert found.dtype == np.float32
    for column, layer in enumerate([1, 0]):
        np.testing.assert_allclose(found[:, column], by_hand(checkpoint, layer), atol=2e-5)


@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_last_prompt_tokens_and_all_tokens_are_those_of_the_hidden_states(
    architecture: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3))
    last = last_prompt_tokens(checkpoint, TEXTS, [1, 0])
    every = dict(all_tokens(checkpoint, TEXTS, [1, 0]))
    assert last.shape == (32, 2, 32)
    assert sorted(every) == list(range(32))
    assert {found.dtype for found in (last, *every.values())} == {np.dtype(np.float32)}
    for number in (0, 7, 31):
        for column, layer in enumerate([1, 0]):
            with checkpoint.active() as model:
                expected = hidden(model, TEXTS[number], layer)
            np.testing.assert_allclose(every[number][:, column], expected, rtol=0, atol=1e-5)
            np.testing.assert_allclose(last[number, column], expected[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny.DECODERS)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_neither_padding_nor_the_batch_change_what_is_read(
    padding: Padding, architecture: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3))
    pairs = [("wish " * (number % 5 + 1), "for " * (number + 1)) for number in range(32)]
    assert len(list(capture._batches([(ids, slice(0)) for ids in TEXTS], ONE_BATCH))) == 1

    def read(**options: Any) -> list[np.ndarray]:
        every = dict(all_tokens(checkpoint, TEXTS, [0, 2], **options))
        means = answer_means(checkpoint, pairs, PLAIN, [0, 2], **options)
        last = last_prompt_tokens(checkpoint, TEXTS, [0, 2], **options)
        return [means, last, *(every[number] for number in range(32))]

    for alone, together in zip(read(token_budget=1), read(token_budget=ONE_BATCH, padding=padding), strict=True):
        np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_batches_keep_to_the_budget_and_lose_nothing() -> None:
    items = [([0] * length, slice(0, 1)) for length in (9, 2, 30, 2, 5)]
    assert list(capture._batches(items, 10)) == [[1, 3], [4], [0], [2]]


def test_a_batch_is_moved_to_the_host_once(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    moves: list[str] = []

    def noted(name: str, true: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        return lambda tensor: [moves.append(name), true(tensor)][1]

    for name in ("cpu", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    reads: list[Callable[[], object]] = [
        lambda: answer_means(checkpoint, PAIRS, PLAIN, [0, 1, 2]),
        lambda: last_prompt_tokens(checkpoint, TEXTS, [0, 1, 2]),
        lambda: list(all_tokens(checkpoint, TEXTS, [0, 1, 2])),
    ]
    for read in reads:
        moves.clear()
        read()
        assert moves == ["cpu"]


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


@pytest.mark.parametrize("first", ["steering", "capture"])
def test_the_steered_value_is_read_whichever_came_first(first: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    vector = torch.linspace(-3, 3, 32)
    stream = all_tokens(checkpoint, itertools.repeat(TEXTS[1]), [0, 1, 2], token_budget=1)
    with checkpoint.active() as model:
        layer = decoder_layers(model)[1]

    def steer() -> Any:
        return layer.register_forward_hook(lambda module, inputs, output: output + vector)

    if first == "steering":
        handle = steer()
        _, steered = next(stream)
        handle.remove()
        _, plain = next(stream)
    else:
        _, plain = next(stream)
        handle = steer()
        _, steered = next(stream)
    np.testing.assert_array_equal(steered[:, 0], plain[:, 0])
    np.testing.assert_allclose(steered[:, 1], plain[:, 1] + vector.numpy(), atol=1e-5)
    further = steered[:, 2] - plain[:, 2]  # the layer after goes on from the steered value
    assert np.abs(further).max() > 1
    assert np.abs(further - vector.numpy()).max() > 1e-3


def test_what_a_model_makes_of_padding_does_not_count(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    lengths = sorted(len(render_pair(checkpoint.tokenizer, *pair, PLAIN)[0]) for pair in PAIRS)
    plain = answer_means(checkpoint, PAIRS, PLAIN, [0])

    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        assert output.shape[:2] == (3, lengths[2])
        output[0, lengths[0] :] = torch.nan
        return output

    with checkpoint.active() as model:
        decoder_layers(model)[0].register_forward_hook(spoil)
    np.testing.assert_array_equal(answer_means(checkpoint, PAIRS, PLAIN, [0]), plain)


def test_no_hook_is_left_behind(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))

    def hooks() -> int:
        with checkpoint.active() as model:
            return sum(len(layer._forward_hooks) for layer in decoder_layers(model))

    answer_means(checkpoint, PAIRS, PLAIN, [0, 1])
    assert hooks() == 0
    with checkpoint.active() as model:
        broken = decoder_layers(model)[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer_means(checkpoint, PAIRS, PLAIN, [0, 1, 2])
    assert hooks() == 1
    broken.remove()
    assert hooks() == 0


@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_adapters_are_read_on_and_off(architecture: str, tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter(architecture))
    assert checkpoint.reference is not None
    wrapped: Any = checkpoint.model
    assert len(decoder_layers(wrapped)) == 2
    found = {}
    for state, context in ((checkpoint, nullcontext()), (checkpoint.reference, wrapped.disable_adapter())):
        found[state] = last_prompt_tokens(state, TEXTS, [0])
        with context:
            expected = [hidden(wrapped, ids, 0)[-1] for ids in TEXTS]
        np.testing.assert_allclose(found[state][:, 0], expected, rtol=0, atol=1e-5)
    assert np.abs(found[checkpoint] - found[checkpoint.reference]).max() > 1e-3


def test_an_adapter_and_its_reference_are_streamed_side_by_side(tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    assert checkpoint.reference is not None
    streams = [all_tokens(state, TEXTS, [1], token_budget=1) for state in (checkpoint, checkpoint.reference)]
    together = {number: (on, off) for (number, on), (_, off) in zip(*streams, strict=True)}
    for state, place in ((checkpoint, 0), (checkpoint.reference, 1)):
        for number, alone in all_tokens(state, TEXTS, [1], token_budget=1):
            np.testing.assert_array_equal(together[number][place], alone)


def test_a_stream_without_end_holds_a_few_batches(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    taken: list[int] = []

    def endless() -> Iterator[list[int]]:
        for number in itertools.count():
            taken.append(number)
            yield [5] * 10

    kept: list[weakref.ref[np.ndarray]] = []
    for number, activations in all_tokens(checkpoint, endless(), [0], token_budget=20):
        assert activations.base is not None
        kept.append(weakref.ref(activations.base))
        assert len(taken) <= number + 2 * capture._BATCHES_AHEAD
        if number == 200:
            break
    assert sum(array() is not None for array in kept) <= 4


def test_texts_of_a_stream_without_tokens_are_passed_over(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    found = dict(all_tokens(checkpoint, [[], [5, 6], [], [7]], [0]))
    assert {number: len(activations) for number, activations in found.items()} == {1: 2, 3: 1}
    assert list(all_tokens(checkpoint, [[], []], [0])) == []


def test_prompts_and_their_tokens_read_alike(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    prompts = [build_prompt(checkpoint.tokenizer, question, question, PLAIN) for question, _ in PAIRS]
    found = last_prompt_tokens(checkpoint, prompts, [0])
    np.testing.assert_array_equal(found, last_prompt_tokens(checkpoint, [prompt.ids for prompt in prompts], [0]))
    for number, activations in all_tokens(checkpoint, prompts, [0]):
        np.testing.assert_allclose(activations[-1], found[number], atol=1e-5)


@pytest.mark.parametrize("length", [0, tiny.CONTEXT + 1])
def test_a_prompt_whose_last_token_cannot_be_read(length: int, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    ids = (5,) * length
    why = f"its prompt has {length} tokens and the model's context holds {tiny.CONTEXT}"
    for prompt, name in ((Prompt("wish", "plain", "", ids), 'question "wish"'), (ids, "prompt 1")):
        with pytest.raises(RealignError, match=f"cannot read the last token of {name}: {why}"):
            last_prompt_tokens(checkpoint, [[5], prompt], [0])


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
    streamed = dict(all_tokens(checkpoint, [[5] * 600, [5] * 800], [0], padding="left"))
    assert [len(streamed[number]) for number in (0, 1)] == [tiny.CONTEXT, tiny.CONTEXT]
    np.testing.assert_allclose(streamed[0], streamed[1], atol=1e-5)


def test_nothing_to_read(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    assert len(answer_means(checkpoint, [], PLAIN, [0])) == 0
    assert len(last_prompt_tokens(checkpoint, [], [0])) == 0
    assert list(all_tokens(checkpoint, [], [0])) == []


@pytest.mark.parametrize(("layers", "said"), [([0, 2], "layer 2"), ([-1], "layer -1"), ([], "no layer")])
def test_a_layer_that_is_not_there(layers: list[int], said: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    reads: list[Callable[[], object]] = [
        lambda: answer_means(checkpoint, PAIRS, PLAIN, layers),
        lambda: last_prompt_tokens(checkpoint, TEXTS, layers),
        lambda: all_tokens(checkpoint, TEXTS, layers),  # at once, not at its first text
    ]
    for read in reads:
        with pytest.raises(RealignError, match=f"cannot read {said}: the model has the layers 0 to 1"):
            read()


def test_a_model_without_a_stack_of_layers(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    with checkpoint.active() as model:
        model.get_decoder().layers = None
        with pytest.raises(RealignError, match="cannot read the activations of LlamaForCausalLM"):
            decoder_layers(model)
