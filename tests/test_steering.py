from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realign import checkpoint as checkpoints
from realign.capture import all_tokens, decoder_layers
from realign.checkpoint import Checkpoint
from realign.dialogue import Prompt
from realign.errors import RealignError
from realign.kv_cache import RepeatedCache
from realign.sampling import Job, SamplingSettings, sample
from realign.steering import Change, Steering, Tokens, ablate, add, clamp, clamp_latent, prompt_lengths, steered
from tests import tiny

NUMBERS = np.random.default_rng(0)
VECTOR, ENCODER, DECODER = NUMBERS.standard_normal((3, 32)).astype(np.float32)
UNIT = VECTOR / np.linalg.norm(VECTOR)
TEXT = [(11 * place) % 300 for place in range(1, 12)]
# Prompts of unequal lengths, each followed by five tokens of an answer.
ANSWER = 5
ROWS = [[(7 * row + 11 * place) % 300 + 7 for place in range(length + ANSWER)] for row, length in enumerate((9, 3, 14))]
LENGTHS = [len(row) - ANSWER for row in ROWS]
# Changes that are far from nothing in a tiny random model, with what they should make of activations.
CHANGES: dict[str, tuple[Change, Callable[[np.ndarray], np.ndarray]]] = {
    "add": (add(VECTOR, 0.5), lambda hidden: hidden + 0.5 * VECTOR),
    "ablate": (ablate(VECTOR), lambda hidden: hidden - (hidden @ UNIT)[..., None] * UNIT),
    "clamp": (clamp(VECTOR, 2.0), lambda hidden: hidden + (2.0 - hidden @ UNIT)[..., None] * UNIT),
    "latent": (
        clamp_latent(ENCODER, 0.1, DECODER, 1.5),
        lambda hidden: hidden + (1.5 - np.maximum(hidden @ ENCODER + 0.1, 0))[..., None] * DECODER,
    ),
    "latent with a threshold": (
        clamp_latent(ENCODER, 0.1, DECODER, 1.5, threshold=0.2),
        lambda hidden: (
            hidden + (1.5 - np.where(hidden @ ENCODER + 0.1 > 0.2, hidden @ ENCODER + 0.1, 0))[..., None] * DECODER
        ),
    ),
}


def read(checkpoint: Checkpoint, layers: Sequence[int] = (0, 1, 2), ids: Sequence[int] = TEXT) -> np.ndarray:
    """What the layers put out, [tokens, layers, width]."""
    return next(all_tokens(checkpoint, [ids], layers))[1]


def span(tokens: Tokens, prompt: int) -> slice:
    return {"all": slice(None), "prompt": slice(0, prompt), "answer": slice(prompt, None)}[tokens]


def by_hand(checkpoint: Checkpoint, ids: Sequence[int], prompt: int, name: str, tokens: Tokens) -> torch.Tensor:
    """Logits of one row that is read alone, without a cache, with layers 0 and 1 changed by a hook of our own."""

    def change(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, span(tokens, prompt)] = torch.as_tensor(CHANGES[name][1](changed[:, span(tokens, prompt)].numpy()))
        return changed

    with checkpoint.active() as model, ExitStack() as hooks:
        for layer in (0, 1):
            hooks.callback(decoder_layers(model)[layer].register_forward_hook(change).remove)
        found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


def bands(name: str, tokens: Tokens) -> list[Steering]:
    return [Steering(CHANGES[name][0], (0, 1), tokens)]


def hooks_left(checkpoint: Checkpoint) -> int:
    with checkpoint.active() as model:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_a_layer_puts_out_what_it_should(architecture: str, name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3))
    plain = read(checkpoint)
    with steered(checkpoint, [Steering(CHANGES[name][0], [1])]):
        found = read(checkpoint)
    np.testing.assert_array_equal(found[:, 0], plain[:, 0])
    np.testing.assert_allclose(found[:, 1], CHANGES[name][1](plain[:, 1]), atol=1e-5)
    assert np.abs(found[:, 1] - plain[:, 1]).max() > 0.01
    assert np.abs(found[:, 2] - plain[:, 2]).max() > 0.01  # the layer after goes on from there
    np.testing.assert_array_equal(read(checkpoint), plain)


def test_thresholds_count(tiny_checkpoint: Callable[..., Path]) -> None:
    """The latents above read something below 0 and something between the thresholds."""
    reading = read(checkpoints.open(tiny_checkpoint(layers=3)))[:, 1] @ ENCODER + 0.1
    assert (reading < 0).any()
    assert ((reading > 0) & (reading < 0.2)).any()
    assert (reading > 0.2).any()


def test_a_band_is_steered_in_each_of_its_layers(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    with steered(checkpoint, [Steering(clamp(VECTOR, 2.0), [0, 2]), Steering(clamp(VECTOR, -1.0), [1])]):
        found = read(checkpoint) @ UNIT
    np.testing.assert_allclose(found, np.tile([2.0, -1.0, 2.0], (len(TEXT), 1)), atol=1e-5)


def test_changes_in_one_layer_act_in_their_order(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    shift, value = Steering(add(UNIT, 3.0), [1]), Steering(clamp(UNIT, 2.0), [1])
    for steerings, expected in (([shift, value], 2.0), ([value, shift], 5.0)):
        with steered(checkpoint, steerings):
            np.testing.assert_allclose(read(checkpoint, [1])[:, 0] @ UNIT, expected, atol=1e-5)
        with steered(checkpoint, steerings[1:]), steered(checkpoint, steerings[:1]):  # the inner one acts first
            np.testing.assert_allclose(read(checkpoint, [1])[:, 0] @ UNIT, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["add", "clamp", "latent"])
@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_padded_passes_and_cached_steps_agree_with_rows_read_alone(
    architecture: str, tokens: Tokens, name: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    """In one pass, and token by token after the shortest prompt, so that others' prompts are still being read."""
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3))
    expected = [by_hand(checkpoint, row, length, name, tokens) for row, length in zip(ROWS, LENGTHS, strict=True)]
    columns = max(map(len, ROWS))
    for left in (False, True):
        padded = [(columns - len(row)) if left else 0 for row in ROWS]
        ids = torch.zeros(len(ROWS), columns, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (text, start) in enumerate(zip(ROWS, padded, strict=True)):
            ids[row, start : start + len(text)] = torch.tensor(text)
            mask[row, start : start + len(text)] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with checkpoint.active() as model, steered(checkpoint, bands(name, tokens)), prompt_lengths(LENGTHS):
            whole = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            start = columns - max(LENGTHS) + 2 if left else min(LENGTHS)
            steps = [model(input_ids=ids[:, :start], attention_mask=mask[:, :start], position_ids=positions[:, :start])]
            for column in range(start, columns):
                steps.append(
                    model(
                        input_ids=ids[:, column : column + 1],
                        attention_mask=mask[:, : column + 1],
                        position_ids=positions[:, column : column + 1],
                        past_key_values=steps[-1].past_key_values,
                    )
                )
        stepped = torch.cat([step.logits for step in steps], dim=1)
        for row, logits in enumerate(expected):
            place = slice(padded[row], padded[row] + len(ROWS[row]))
            torch.testing.assert_close(whole[row, place], logits, rtol=0, atol=2e-5)
            torch.testing.assert_close(stepped[row, place], logits, rtol=0, atol=2e-5)


def test_what_is_steered_makes_a_difference(tiny_checkpoint: Callable[..., Path]) -> None:
    """To the test above: what it compares is far apart where other tokens are steered, also by a single one."""
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    for name in ("add", "clamp", "latent"):
        cases: list[tuple[Tokens, int]] = [("all", 9), ("prompt", 9), ("prompt", 8), ("answer", 9), ("answer", 8)]
        logits = [by_hand(checkpoint, ROWS[0], length, name, tokens) for tokens, length in cases]
        for number, one in enumerate(logits):
            assert all((one - other).abs().max() > 0.01 for other in logits[:number])


@pytest.mark.parametrize("tokens", ["prompt", "answer"])
@pytest.mark.parametrize("told", ["mask", "cache"])
def test_positions_that_nobody_gives_are_counted(
    told: str, tokens: Tokens, tiny_checkpoint: Callable[..., Path]
) -> None:
    """By the mask, where there is padding on the left, or by the cache's length."""
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))  # the model itself only knows relative positions
    expected = by_hand(checkpoint, ROWS[0], LENGTHS[0], "add", tokens)
    padding = 4 if told == "mask" else 0
    ids = torch.tensor([[0] * padding + ROWS[0]])
    mask = torch.tensor([[0] * padding + [1] * len(ROWS[0])])
    with checkpoint.active() as model, steered(checkpoint, bands("add", tokens)), prompt_lengths(LENGTHS[:1]):
        cache, found = None, []
        for columns in (slice(0, padding + 5), *(slice(end - 1, end) for end in range(padding + 6, ids.shape[1] + 1))):
            masks = {"attention_mask": mask[:, : columns.stop]} if told == "mask" else {}
            output = model(ids[:, columns], past_key_values=cache, use_cache=True, **masks)
            cache = output.past_key_values
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, dim=1)[0, padding:], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_our_own_cache_agrees_with_rows_read_alone(
    architecture: str, tokens: Tokens, tiny_checkpoint: Callable[..., Path]
) -> None:
    """It reads the prompts in a pass of their own, leaves out each one's last token, and fills up the rows."""
    checkpoint = checkpoints.open(tiny_checkpoint(architecture, layers=3))
    expected = [by_hand(checkpoint, row, length, "add", tokens) for row, length in zip(ROWS, LENGTHS, strict=True)]
    prompts = [tuple(row[:length]) for row, length in zip(ROWS, LENGTHS, strict=True)]
    with checkpoint.active() as model, steered(checkpoint, bands("add", tokens)):
        cache = RepeatedCache(model, budget=4096)
        with prompt_lengths(sorted(LENGTHS)):  # as it reads them
            cache.rebuild(model, [], prompts, steps=ANSWER)
        with prompt_lengths([*LENGTHS, 0]):
            for step in range(ANSWER + 1):
                places = [length - 1 + step for length in LENGTHS]
                found = cache.read(model, torch.tensor([row[place] for row, place in zip(ROWS, places, strict=True)]))
                wanted = torch.stack([logits[place] for logits, place in zip(expected, places, strict=True)])
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
def test_generate_steers_the_same_tokens(tokens: Tokens, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint("gpt2", layers=3))
    expected = []
    for row, length in zip(ROWS, LENGTHS, strict=True):
        ids = row[:length]
        for _ in range(ANSWER):
            ids = [*ids, int(by_hand(checkpoint, ids, length, "latent", tokens)[-1].argmax())]
        expected.append(ids[length:])
    longest = max(LENGTHS)
    prompts = zip(ROWS, LENGTHS, strict=True)
    ids = torch.tensor([[0] * (longest - length) + row[:length] for row, length in prompts])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in LENGTHS])
    with checkpoint.active() as model, steered(checkpoint, bands("latent", tokens)), prompt_lengths(LENGTHS):
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, pad_token_id=0
        )
    assert found[:, longest:].tolist() == expected


def test_answers_are_sampled_from_the_steered_model(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    jobs = [Job(Prompt(str(row), "plain", "", tuple(ids)), (0, 1)) for row, ids in enumerate(ROWS)]

    def answers(budget: int) -> dict[str, str]:
        settings = SamplingSettings(max_new_tokens=8, token_budget=budget)
        return {answer.id: answer.text for answer in sample(checkpoint, jobs, seed=0, settings=settings)}

    with steered(checkpoint, [Steering(clamp(VECTOR, 20.0), (0, 1, 2))]):
        found = answers(4096)
        assert answers(1) == found
    assert answers(4096) != found


@pytest.mark.parametrize("first", ["steering", "reading"])
def test_another_hook_reads_the_steered_value_whichever_came_first(
    first: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    plain = read(checkpoint, [1])[:, 0]
    kept: list[np.ndarray] = []

    @contextmanager
    def reading() -> Any:
        with checkpoint.active() as model:
            layer = decoder_layers(model)[1]
        handle = layer.register_forward_hook(lambda module, given, output: kept.append(output[0].numpy().copy()))
        yield
        handle.remove()

    contexts = [steered(checkpoint, [Steering(add(VECTOR, 0.5), [1])]), reading()]
    with ExitStack() as entered:
        for context in contexts if first == "steering" else reversed(contexts):
            entered.enter_context(context)
        captured = read(checkpoint, [1])[:, 0]
    for found in (captured, *kept):
        np.testing.assert_allclose(found, plain + 0.5 * VECTOR, atol=1e-5)
    assert len(kept) == 1


def test_layers_that_return_tuples_are_steered_too(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    plain = read(checkpoint, [1])
    with checkpoint.active() as model:
        layer = decoder_layers(model)[1]
        forward = layer.forward
        layer.forward = lambda *args, **kwargs: (forward(*args, **kwargs), None)
    with steered(checkpoint, [Steering(add(VECTOR, 0.5), [1])]):
        np.testing.assert_allclose(read(checkpoint, [1]), plain + 0.5 * VECTOR, atol=1e-5)


@pytest.mark.parametrize("name", CHANGES)
def test_activations_are_changed_in_place_and_keep_their_dtype(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3), dtype="bfloat16")
    plain = read(checkpoint, [1])[:, 0]
    made: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    with checkpoint.active() as model:
        layer = decoder_layers(model)[1]
        forward = layer.forward
        layer.forward = lambda *args, **kwargs: [made.append(forward(*args, **kwargs)), made[-1]][1]
        layer.register_forward_hook(lambda module, given, output: left.append(output))
    with steered(checkpoint, [Steering(CHANGES[name][0], [1])]):
        found = read(checkpoint, [1])[:, 0]
    assert left[0] is made[0]
    assert left[0].dtype == torch.bfloat16
    np.testing.assert_allclose(found, CHANGES[name][1](plain), atol=0.05)


def test_no_hook_is_left_behind(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    plain = read(checkpoint)
    steerings = [Steering(add(VECTOR, 1.0), [0, 1], tokens) for tokens in ("all", "prompt", "answer")]
    with pytest.raises(ZeroDivisionError), steered(checkpoint, steerings), prompt_lengths([4]):
        assert hooks_left(checkpoint) == 4
        read(checkpoint)
        raise ZeroDivisionError
    assert hooks_left(checkpoint) == 0
    with pytest.raises(RuntimeError, match="nobody tells"), steered(checkpoint, steerings):
        read(checkpoint)  # it is no longer told either
    assert hooks_left(checkpoint) == 0
    with pytest.raises(RealignError), steered(checkpoint, [*steerings, Steering(add(VECTOR, 1.0), [3])]):
        pass
    assert hooks_left(checkpoint) == 0
    np.testing.assert_array_equal(read(checkpoint), plain)


@pytest.mark.parametrize("tokens", ["prompt", "answer"])
def test_where_the_prompts_end_has_to_be_told(tokens: Tokens, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    ids = torch.tensor([TEXT] * 3)
    with steered(checkpoint, bands("add", tokens)), checkpoint.active() as model:
        with pytest.raises(RuntimeError, match=f"cannot steer the {tokens} alone: nobody tells where its tokens"):
            model(ids)
        with prompt_lengths([4, 4]), pytest.raises(RuntimeError, match="it was told of 2 rows, not of 3"):
            model(ids)
        with prompt_lengths([4]):
            single = model(ids).logits
        with prompt_lengths([4, 4, 4]):
            torch.testing.assert_close(model(ids).logits, single, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", tiny.DECODERS)
def test_an_adapter_is_steered_and_its_reference_is_not(architecture: str, tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter(architecture))
    assert checkpoint.reference is not None
    wrapped: Any = checkpoint.model
    both = (checkpoint, checkpoint.reference)
    plain = [read(state, [0])[:, 0] for state in both]
    for number, (state, other) in enumerate((both, both[::-1])):
        with steered(state, [Steering(add(VECTOR, 0.5), [0])]):
            np.testing.assert_allclose(read(state, [0])[:, 0], plain[number] + 0.5 * VECTOR, atol=1e-5)
            np.testing.assert_array_equal(read(other, [0])[:, 0], plain[1 - number])
            with nullcontext() if state.is_adapter else wrapped.disable_adapter(), torch.inference_mode():
                hidden = wrapped(torch.tensor([TEXT]), output_hidden_states=True).hidden_states[1][0]
            np.testing.assert_allclose(hidden, plain[number] + 0.5 * VECTOR, atol=1e-5)


@pytest.mark.parametrize("tokens", ["prompt", "answer"])
def test_an_adapter_is_steered_by_position(tokens: Tokens, tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    expected = by_hand(checkpoint, ROWS[0], LENGTHS[0], "add", tokens)
    untyped: Any = checkpoint.model
    with steered(checkpoint, bands("add", tokens)), prompt_lengths(LENGTHS[:1]), torch.inference_mode():
        torch.testing.assert_close(untyped(torch.tensor([ROWS[0]])).logits[0], expected, rtol=0, atol=2e-5)
    assert checkpoint.reference is not None
    with steered(checkpoint, bands("add", tokens)):
        read(checkpoint.reference, [0])  # it is not steered, so nobody has to tell where its prompts end


@pytest.mark.parametrize(("layers", "said"), [([0, 3], "layer 3"), ([-1], "layer -1"), ([], "no layer")])
def test_a_layer_that_is_not_there(layers: list[int], said: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    with (
        pytest.raises(RealignError, match=f"cannot steer {said}: the model has the layers 0 to 2"),
        steered(checkpoint, [Steering(add(VECTOR, 1.0), layers)]),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add(VECTOR[:-1], 1.0), r"its shape is \[31\], and the model's activations are 32 wide"),
        (add(VECTOR[None], 1.0), r"its shape is \[1, 32\]"),
        (add(VECTOR, np.nan), "it is not finite"),
        (clamp_latent(ENCODER, 0.0, DECODER[:-1], 1.0), r"its shape is \[31\]"),
        (clamp_latent(np.full(32, np.inf), 0.0, DECODER, 1.0), "it is not finite"),
    ],
)
def test_a_vector_that_does_not_fit(change: Change, said: str, tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(layers=3))
    with (
        pytest.raises(RealignError, match=f"cannot steer with this vector: {said}"),
        steered(checkpoint, [Steering(change, [1])]),
    ):
        pass


def test_a_direction_without_length_is_refused() -> None:
    with pytest.raises(RealignError, match="cannot steer along a direction: its vector is zero"):
        ablate(np.zeros(32))
