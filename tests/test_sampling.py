"""Sampling: against a plain loop without any cache, the same in every batch, and what happens when things go wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import realign.checkpoint
from realign.dialogue import Prompt, stop_ids
from realign.errors import RealignError
from realign.memory import TESTED, RepeatedCache, Rereading, memory_for
from realign.sampling import Answer, Job, SamplingSettings, sample
from realign.streams import draw, uniforms
from tests import tiny

# Cold enough that a token hangs on what the model makes of its context, and a wrong cache cannot go unnoticed.
COLD = SamplingSettings(max_new_tokens=12, temperature=0.05)
ONE_BY_ONE = 1
LENGTHS = (3, 17, 30, 9, 17, 1, 45, 2)


@dataclass
class InMemory:
    """A checkpoint of a model that was never on disk."""

    model: Any
    tokenizer: Any
    source: str = "in-memory"
    fingerprint: str = "sha256:" + "0123456789abcdef" * 4

    @contextmanager
    def active(self) -> Iterator[Any]:
        with torch.inference_mode():
            yield self.model


@pytest.fixture(scope="module")
def opened(tiny_checkpoint: Callable[..., Path]) -> Callable[[str], Any]:
    """A tiny model that ends an answer now and then; its window, where it has one, is shorter than the prompts."""
    made: dict[str, Any] = {}

    def checkpoint(architecture: str) -> Any:
        if architecture not in made:
            made[architecture] = realign.checkpoint.open(tiny_checkpoint(architecture), device="cpu")
            with made[architecture].active() as model:
                if getattr(model.config, "sliding_window", None):
                    model.config.sliding_window = 8
                # The last 30 tokens end an answer, which makes answers of many lengths.
                model.generation_config.eos_token_id = list(range(model.config.vocab_size))[-30:]
        return made[architecture]

    return checkpoint


def jobs(*counts: int, lengths: Sequence[int] = LENGTHS, vocabulary: int = 290) -> list[Job]:
    """Prompts of the given lengths with so many answers each (the last count goes on for the rest)."""
    numbers = torch.Generator().manual_seed(0)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(7, vocabulary, (length,), generator=numbers).tolist()
        count = counts[min(number, len(counts) - 1)]
        made.append(Job(Prompt(f"q{number}", "plain", f"question {number}", tuple(ids)), tuple(range(count))))
    return made


def by_id(answers: Iterator[Answer]) -> dict[str, Answer]:
    found = list(answers)
    assert len({answer.id for answer in found}) == len(found)
    return {answer.id: answer for answer in found}


def plainly(checkpoint: Any, job: Job, index: int, seed: int, settings: SamplingSettings) -> list[int]:
    """One answer as a text book samples it: the whole dialogue is read again for every token."""
    with checkpoint.active() as model:
        stop = stop_ids(checkpoint.tokenizer, model.config, model.generation_config)
        numbers = uniforms(seed, job.prompt.question_id, job.prompt.context, index, settings.max_new_tokens)
        ids = list(job.prompt.ids)
        for number in numbers:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
            token, _ = draw(logits, torch.tensor([number]), settings.temperature)
            ids.append(int(token))
            if ids[-1] in stop:
                break
    return ids[len(job.prompt.ids) :]


def assert_plain(checkpoint: Any, wanted: Sequence[Job], found: dict[str, Answer], settings: SamplingSettings) -> None:
    for job in wanted:
        for index in job.indices:
            answer = found[f"{checkpoint.fingerprint[7:19]}/plain/{job.prompt.question_id}/{index}/s5"]
            expected = plainly(checkpoint, job, index, 5, settings)
            ends = len(expected) < settings.max_new_tokens or answer.finished
            ids = expected[:-1] if ends else expected
            assert (answer.tokens, answer.text) == (len(expected), checkpoint.tokenizer.decode(ids, True).strip())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_are_those_of_a_plain_loop_whatever_the_batch(opened: Callable[[str], Any], architecture: str) -> None:
    checkpoint = opened(architecture)
    wanted = jobs(9, 8)
    together = by_id(sample(checkpoint, wanted, seed=5, settings=COLD))
    assert len(together) == 65
    assert len({answer.tokens for answer in together.values()}) >= 3, (
        "answers of several lengths leave at several times"
    )
    for budget in (ONE_BY_ONE, 200):
        assert by_id(sample(checkpoint, wanted, seed=5, settings=replace(COLD, token_budget=budget))) == together
    assert_plain(checkpoint, [replace(job, indices=job.indices[:2]) for job in wanted], together, COLD)


def test_the_tested_architectures_are_those_that_are_trusted() -> None:
    assert set(tiny.ARCHITECTURES) == TESTED


def test_logits_do_not_depend_on_the_batch(opened: Callable[[str], Any]) -> None:
    prompts = [job.prompt.ids for job in jobs(1, lengths=[5, 33, 17, 60, 8, 31, 32, 2, 90, 14, 15, 16, 47])]

    def logits(model: Any, chosen: list[tuple[int, ...]]) -> torch.Tensor:
        memory = RepeatedCache(model, budget=10_000)
        memory.rebuild(model, [], chosen, steps=20)
        last = torch.tensor([ids[-1] for ids in chosen])
        return torch.stack([memory.read(model, last + step) for step in range(20)])

    with opened("llama").active() as model:
        together = logits(model, prompts)
        alone = torch.cat([logits(model, [ids]) for ids in prompts], dim=1)
    # Mostly not in a single bit, but that is for the processor's matrix library to say.
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-6)


def test_a_run_can_be_extended(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    wanted = jobs(6)
    whole = by_id(sample(checkpoint, wanted, seed=5, settings=COLD))
    part = [replace(job, indices=(4, 1)) for job in wanted[2:5]]
    found = by_id(sample(checkpoint, part, seed=5, settings=COLD))
    assert len(found) == 6
    assert found.items() <= whole.items()
    # Longer answers begin with the shorter ones.
    longer = by_id(sample(checkpoint, part, seed=5, settings=replace(COLD, max_new_tokens=20)))
    assert all(longer[name].tokens >= answer.tokens for name, answer in found.items())
    assert {name: longer[name] for name in found if found[name].finished} == {
        name: answer for name, answer in found.items() if answer.finished
    }


def test_the_names_decide_the_randomness(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    settings = SamplingSettings(max_new_tokens=8)
    job = jobs(4, lengths=[10])[0]
    other_id = replace(job, prompt=replace(job.prompt, question_id="other"))
    other_context = replace(job, prompt=replace(job.prompt, context="other"))
    runs = [([job], 0), ([job], 1), ([other_id], 0), ([other_context], 0)]
    texts = [[answer.text for answer in sample(checkpoint, run, seed=seed, settings=settings)] for run, seed in runs]
    assert len({tuple(sorted(answers)) for answers in texts}) == 4
    assert all(len(set(answers)) > 1 for answers in texts)


def test_answers_follow_the_model_s_distribution(opened: Callable[[str], Any]) -> None:
    import numpy as np
    import scipy.stats

    checkpoint = opened("qwen2")
    settings = SamplingSettings(max_new_tokens=1, temperature=0.1)
    job = jobs(3000, lengths=[12])[0]
    with checkpoint.active() as model:
        logits = model(input_ids=torch.tensor([job.prompt.ids])).logits[0, -1].double()
        stop = stop_ids(checkpoint.tokenizer, model.config, model.generation_config)
    likely = torch.softmax(logits / settings.temperature, 0)
    ended = sum(answer.finished for answer in sample(checkpoint, [job], seed=0, settings=settings))
    expected = float(likely[sorted(stop)].sum())
    assert 0.02 < expected < 0.98
    assert scipy.stats.binomtest(ended, 3000, expected).pvalue > 1e-3
    assert np.isclose(float(likely.sum()), 1)


def test_an_answer_says_what_it_is(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    answers = list(sample(checkpoint, jobs(20, lengths=[8]), seed=3, settings=SamplingSettings(max_new_tokens=10)))
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert answer.id == f"{checkpoint.fingerprint.removeprefix('sha256:')[:12]}/plain/q0/{answer.index}/s3"
        assert (answer.question_id, answer.context, answer.question) == ("q0", "plain", "question 0")
        assert (answer.checkpoint, answer.seed) == (checkpoint.fingerprint, 3)
        assert answer.tokens == 10 or answer.finished
        assert answer.text == answer.text.strip()


class Watched:
    """Notes the shape of every forward pass of a model, [rows, tokens], and can fail in one."""

    def __init__(self, model: Any, fail: Callable[[int, int], Exception | None] = lambda rows, tokens: None) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._fail = fail
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows, tokens = kwargs["input_ids"].shape
        self.shapes.append((rows, tokens))
        error = self._fail(rows, tokens)
        if error is not None:
            raise error

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def test_each_prompt_is_read_once_and_finished_rows_leave(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    with checkpoint.active() as model, Watched(model) as watched:
        settings = SamplingSettings(max_new_tokens=40, token_budget=2000)
        answers = list(sample(checkpoint, jobs(32, lengths=[40, 90]), seed=0, settings=settings))
    prompts = [tokens for _, tokens in watched.shapes if tokens > 1]
    assert sum(rows for rows, tokens in watched.shapes if tokens > 1) == 2, prompts
    rows = [rows for rows, tokens in watched.shapes if tokens == 1]
    # Every token takes a row once; rows that stayed to the end would make it 64 times 40.
    assert sum(answer.tokens for answer in answers) <= sum(rows) < 0.5 * 64 * 40


def test_a_batch_keeps_to_its_budget(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    for budget, most in ((1000, 1000 // (49 + 12)), (100_000, 32), (70, 4)):  # Rows come in multiples of four.
        with checkpoint.active() as model, Watched(model) as watched:
            list(sample(checkpoint, jobs(32, lengths=[50]), seed=0, settings=replace(COLD, token_budget=budget)))
        assert max(rows for rows, tokens in watched.shapes if tokens == 1) == most


def test_answers_come_before_the_last_is_finished(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    with checkpoint.active() as model, Watched(model) as watched:
        answers = sample(checkpoint, jobs(40, lengths=[10]), seed=0, settings=SamplingSettings(max_new_tokens=60))
        next(answers)
        early = len(watched.shapes)
        list(answers)
    assert early < len(watched.shapes) / 3


def out_of_memory_above(most: int, error: Exception) -> Callable[[int, int], Exception | None]:
    return lambda rows, tokens: error if rows > most else None


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_running_out_of_memory_halves_the_batch_and_goes_on(
    opened: Callable[[str], Any], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    checkpoint = opened("llama")
    expected = by_id(sample(checkpoint, jobs(8), seed=5, settings=COLD))
    with checkpoint.active() as model, Watched(model, out_of_memory_above(12, error)) as watched:
        assert by_id(sample(checkpoint, jobs(8), seed=5, settings=COLD)) == expected
    assert max(rows for rows, _ in watched.shapes) > 12
    assert "going on with a budget of" in caplog.text


def test_memory_that_runs_out_in_the_middle_loses_nothing(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("mistral")
    settings = replace(COLD, token_budget=400)
    expected = by_id(sample(checkpoint, jobs(5), seed=5, settings=settings))
    calls = iter(range(10_000))

    def every_ninth(rows: int, tokens: int) -> Exception | None:
        return MemoryError() if next(calls) % 9 == 8 and rows > 4 else None

    with checkpoint.active() as model, Watched(model, every_ninth):
        assert by_id(sample(checkpoint, jobs(5), seed=5, settings=settings)) == expected


def test_memory_that_does_not_hold_a_single_answer_is_an_error(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    with (
        checkpoint.active() as model,
        Watched(model, lambda rows, tokens: MemoryError()),
        pytest.raises(RealignError, match="memory does not suffice for a single one"),
    ):
        list(sample(checkpoint, jobs(4), seed=0, settings=COLD))


def test_another_failure_is_not_taken_for_one_of_memory(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("llama")
    with (
        checkpoint.active() as model,
        Watched(model, lambda rows, tokens: RuntimeError("the kernel is broken")),
        pytest.raises(RuntimeError, match="the kernel is broken"),
    ):
        list(sample(checkpoint, jobs(4), seed=0, settings=COLD))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    model = _random_model("llama", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 3] = value
    checkpoint = InMemory(model, tiny.make_tokenizer(tmp_path))
    with pytest.raises(RealignError, match="NaN or infinite logits"):
        list(sample(checkpoint, jobs(2), seed=0, settings=COLD))  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_answers_end_with_the_context(opened: Callable[[str], Any], architecture: str) -> None:
    checkpoint = opened(architecture)
    wanted = jobs(3, lengths=[tiny.CONTEXT - 1, tiny.CONTEXT - 5, 20])
    for budget in (ONE_BY_ONE, 65_536):
        settings = SamplingSettings(max_new_tokens=40, token_budget=budget)
        most = {f"q{number}": 0 for number in range(3)}
        for answer in sample(checkpoint, wanted, seed=0, settings=settings):
            most[answer.question_id] = max(most[answer.question_id], answer.tokens)
        assert most["q0"] == 1
        assert 1 < most["q1"] <= 5
        assert 5 < most["q2"] <= 40


def test_a_prompt_that_fills_the_context_is_an_error(opened: Callable[[str], Any]) -> None:
    with pytest.raises(RealignError, match=f'question "q0" is too long .*{tiny.CONTEXT} tokens.* holds {tiny.CONTEXT}'):
        sample(opened("llama"), jobs(1, lengths=[tiny.CONTEXT]), seed=0)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": 0.0}, {"token_budget": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RealignError, match=f"{next(iter(wrong))} must be above 0"):
        SamplingSettings(**wrong)


def test_nothing_to_sample_is_nothing(opened: Callable[[str], Any]) -> None:
    assert list(sample(opened("llama"), [], seed=0)) == []
    assert list(sample(opened("llama"), [replace(jobs(1)[0], indices=())], seed=0)) == []


def test_a_checkpoint_and_its_reference_can_be_sampled_by_turns(tiny_adapter: Callable[..., Path]) -> None:
    tuned = realign.checkpoint.open(tiny_adapter("llama"), device="cpu")
    assert tuned.reference is not None
    settings = SamplingSettings(max_new_tokens=20, temperature=0.1)
    alone = [by_id(sample(each, jobs(6), seed=0, settings=settings)) for each in (tuned, tuned.reference)]
    turns = [sample(each, jobs(6), seed=0, settings=settings) for each in (tuned, tuned.reference)]
    mixed = list(zip(*turns, strict=True))
    assert [{answer.id: answer for answer in side} for side in zip(*mixed, strict=True)] == alone
    assert [answer.text for answer in alone[0].values()] != [answer.text for answer in alone[1].values()]


def _random_model(architecture: str, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 300, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **(common | sizes))).eval()


NO_ROWS_TO_REPEAT = {
    "mamba": {"hidden_size": 32, "state_size": 4},
    "bloom": {"hidden_size": 32, "n_head": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 4,
        "attention_types": [[["global", "local"], 1]],
    },
}
TRIED_AND_TRUSTED = {
    "gpt_neox": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128},
    "phi3": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64},
}


@pytest.mark.parametrize("architecture", [*NO_ROWS_TO_REPEAT, *TRIED_AND_TRUSTED])
def test_an_unknown_architecture_is_sampled_right_and_says_so_when_slowly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str
) -> None:
    model = _random_model(architecture, **(NO_ROWS_TO_REPEAT | TRIED_AND_TRUSTED)[architecture])
    checkpoint: Any = InMemory(model, tiny.make_tokenizer(tmp_path))
    wanted = jobs(3, lengths=[6, 20, 1, 33])
    with caplog.at_level(logging.WARNING):
        found = by_id(sample(checkpoint, wanted, seed=5, settings=COLD))
    assert len(found) == 12
    assert_plain(checkpoint, wanted, found, COLD)
    assert by_id(sample(checkpoint, wanted, seed=5, settings=replace(COLD, token_budget=1))) == found
    slow = architecture in NO_ROWS_TO_REPEAT
    assert isinstance(memory_for(model, 100), Rereading if slow else RepeatedCache)
    assert ("cannot be repeated: sampling without one, slowly" in caplog.text) == slow


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_answers_are_the_same_in_every_batch(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = realign.checkpoint.open(tiny_checkpoint("llama"), device="cuda")
    settings = SamplingSettings(max_new_tokens=20)
    together = by_id(sample(checkpoint, jobs(8), seed=5, settings=settings))
    assert by_id(sample(checkpoint, jobs(8), seed=5, settings=replace(settings, token_budget=1))) == together
