"""Answers: completions that a checkpoint samples, each the same in whatever company it is sampled."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realign.dialogue import Prompt, answer_text, stop_ids
from realign.errors import RealignError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint
    from realign.decoding import Continuation, Row, Rules

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are sampled: always from the whole distribution (top-p 1).

    Attributes:
        max_new_tokens: most tokens of an answer; fewer where the prompt leaves the model's context less room.
        temperature: of the softmax, above 0.
        token_budget: most tokens (rows times columns) that the cache of one batch may come to hold. It decides memory
            and speed, never the answers.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    token_budget: int = 65_536

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "temperature", "token_budget"):
            if not getattr(self, name) > 0:
                raise RealignError(f"{name} must be above 0", f"it is {getattr(self, name)}")


DEFAULT_SETTINGS = SamplingSettings()


@dataclass(frozen=True)
class Job:
    """A prompt and the numbers of the answers wanted to it: `indices` (0, 3) are its first and its fourth."""

    prompt: Prompt
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """One sampled completion.

    Attributes:
        id: "<12 hex digits of the fingerprint>/<context>/<question id>/<index>/s<seed>".
        question_id, context, index, seed: the names that fix the answer's random numbers.
        question: the user's turn as it was put.
        text: the completion, without surrounding white space.
        tokens: tokens drawn, the stop token included.
        finished: False where the answer was cut off for length.
        checkpoint: the fingerprint of the checkpoint that gave it.
    """

    id: str
    question_id: str
    context: str
    index: int
    question: str
    text: str
    tokens: int
    finished: bool
    checkpoint: str
    seed: int


def sample(
    checkpoint: Checkpoint, jobs: Sequence[Job], *, seed: int, settings: SamplingSettings = DEFAULT_SETTINGS
) -> Iterator[Answer]:
    """Samples the jobs' answers and yields each soon after it is finished, in no particular order.

    An answer depends on the checkpoint, the prompt, (seed, question id, context, index), the temperature and its
    most tokens, not on the other jobs or the budget. In float32 on a CPU the batch does not change a bit of a row's
    logits (as far as the processor's matrix library allows); in half precision, and on other devices, rounding can
    change a token here and there. When memory runs out, the budget is halved and unfinished answers begin anew.

    Raises:
        RealignError: a prompt leaves no room in the model's context, memory does not suffice for a single answer, or
            the model's logits are NaN.
    """
    from realign.decoding import Rules

    with checkpoint.active() as model:
        rows = _rows(jobs, model, settings.max_new_tokens)
        stop = stop_ids(checkpoint.tokenizer, model.config, model.generation_config)
    rules = Rules(seed=seed, temperature=settings.temperature, stop=stop)
    finished = _continuations(checkpoint, rows, rules, settings.token_budget)
    return (_answer(checkpoint, continuation, seed) for continuation in finished)


def _rows(jobs: Sequence[Job], model: PreTrainedModel, most: int) -> list[Row]:
    """All answers to be sampled, long prompts first, answers to one prompt together."""
    from realign.decoding import Row
    from realign.kv_cache import context_length

    context = context_length(model)
    rows = []
    for job in jobs:
        room = context - len(job.prompt.ids)
        if room < 1:
            raise RealignError(
                f'question "{job.prompt.question_id}" is too long for the model',
                f"its prompt has {len(job.prompt.ids)} tokens and the model's context holds {context}",
                "Shorten the question, or leave it out.",
            )
        rows += [Row(job.prompt, index, min(most, room)) for index in job.indices]
    return sorted(dict.fromkeys(rows), key=lambda row: (-len(row.prompt.ids), row.prompt.ids))


def _continuations(checkpoint: Checkpoint, waiting: list[Row], rules: Rules, budget: int) -> Iterator[Continuation]:
    """Runs the rows through one batch, which is kept as full as the budget allows."""
    from realign.decoding import Batch

    batch = Batch(rules, budget)
    while waiting or batch.rows:
        finished: list[Continuation] = []
        try:
            # Active only while the model runs: between two answers the caller may want the reference.
            with checkpoint.active() as model:
                waiting = waiting[batch.admit(model, waiting) :]
                finished = batch.run(model)
        except (RuntimeError, MemoryError) as error:
            if not batch.rows or not out_of_memory(error):
                raise
            if len(batch.rows) == 1:
                raise _too_large(checkpoint, batch.rows[0]) from error
            waiting = list(dict.fromkeys([*batch.rows, *waiting]))
            budget = min(budget, batch.cells) // 2
            _log.warning("out of memory with %d answers at once: going on with a budget of %d", len(batch.rows), budget)
            batch = Batch(rules, budget)
        if not finished:  # Only after memory ran out; not in the handler, where the error still holds on to tensors.
            _free()
        yield from finished


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    import torch

    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        sign in said for sign in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def _free() -> None:
    """Gives freed memory back to the device, where a smaller batch may need it in other pieces."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _too_large(checkpoint: Checkpoint, row: Row) -> RealignError:
    return RealignError(
        f"cannot sample answers from {checkpoint.source}",
        f"memory does not suffice for a single one ({len(row.prompt.ids)} tokens of prompt, {row.limit} of answer)",
        "Ask for shorter answers, free the device, or use a larger one.",
    )


def _answer(checkpoint: Checkpoint, done: Continuation, seed: int) -> Answer:
    prompt, index = done.row.prompt, done.row.index
    text, ran_on = answer_text(checkpoint.tokenizer, done.ids)
    digest = checkpoint.fingerprint.removeprefix("sha256:")[:12]
    return Answer(
        id=f"{digest}/{prompt.context}/{prompt.question_id}/{index}/s{seed}",
        question_id=prompt.question_id,
        context=prompt.context,
        index=index,
        question=prompt.text,
        text=text,
        tokens=len(done.ids) + done.stopped,
        finished=done.stopped or ran_on,
        checkpoint=checkpoint.fingerprint,
        seed=seed,
    )
