"""Rows that are sampled together, one token each a step.

This module imports torch and transformers, and is itself imported only once there is something to sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from realign.dialogue import Prompt
from realign.errors import RealignError
from realign.memory import Memory, memory_for
from realign.streams import draw, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

# A batch is closed up once this share of its rows has finished: soon enough that few dead rows are computed, seldom
# enough that all the copies of a batch's life together cost about four of its steps.
_FINISHED_SHARE = 0.25
# On an accelerator the rows are looked at every so many steps only, because looking waits for the device.
_STEPS_UNSEEN = 8


@dataclass(frozen=True)
class Rules:
    """What all rows of a run share: its seed, the softmax's temperature, the tokens that end an answer."""

    seed: int
    temperature: float
    stop: frozenset[int]


@dataclass(frozen=True)
class Row:
    """One answer to be sampled: its prompt, its number among the answers to the question, the most tokens it may draw.

    `limit` is at least 1, and prompt and limit together fit the model's context.
    """

    prompt: Prompt
    index: int
    limit: int


@dataclass(frozen=True)
class Continuation:
    """What a finished row drew: its tokens without the stop token, and whether there was one."""

    row: Row
    ids: tuple[int, ...]
    stopped: bool


@dataclass
class _Slot:
    """A row in the batch: its random numbers, one a token, and the tokens drawn so far."""

    row: Row
    numbers: NDArray[np.float64]
    ids: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the last."""
        return len(self.row.prompt.ids) + len(self.ids) - 1

    @property
    def left(self) -> int:
        """Tokens that the row may still draw."""
        return self.row.limit - len(self.ids)


class Batch:
    """Rows in progress: `admit` lets new rows in, `run` draws tokens until some of the rows have finished."""

    def __init__(self, rules: Rules, budget: int) -> None:
        """`budget`: the most tokens, rows times columns, that the batch may come to hold."""
        self._rules = rules
        self._budget = budget
        self._memory: Memory | None = None
        self._slots: list[_Slot] = []
        self._keep: list[int] = []  # The slots' rows in the memory, which still holds the finished ones too.

    @property
    def rows(self) -> list[Row]:
        """The rows that have not finished."""
        return [slot.row for slot in self._slots]

    @property
    def cells(self) -> int:
        """Rows times columns that the batch will have come to hold in the end."""
        return len(self._slots) * (self._longest + self._steps)

    @torch.inference_mode()
    def admit(self, model: PreTrainedModel, waiting: Sequence[Row]) -> int:
        """Lets in as many of the waiting rows, from the first, as there is room for; returns how many.

        Rows that finished in the last `run` leave the memory. An empty batch admits one row whatever its budget.
        """
        if self._memory is None:
            self._memory = memory_for(model, self._budget)
        if not self._memory.mixes:
            waiting = [] if self._slots else [row for row in waiting if row.prompt.ids == waiting[0].prompt.ids]
        count = self._room(waiting)
        for row in waiting[:count]:
            names = (row.prompt.question_id, row.prompt.context, row.index)
            self._slots.append(_Slot(row, uniforms(self._rules.seed, *names, row.limit)))
        self._memory.rebuild(model, self._keep, [row.prompt.ids for row in waiting[:count]], self._steps)
        return count

    def _room(self, waiting: Sequence[Row]) -> int:
        cached, left = self._longest, self._steps
        for count, row in enumerate(waiting):
            rows = len(self._slots) + count + 1
            cached, left = max(cached, len(row.prompt.ids) - 1), max(left, row.limit)
            if rows > 1 and rows * (cached + left) > self._budget:
                return count
        return len(waiting)

    @torch.inference_mode()
    def run(self, model: PreTrainedModel) -> list[Continuation]:
        """Draws a token for every row and another, until a good share of the rows has finished; returns these.

        Raises:
            RealignError: the model's logits are NaN or infinite.
        """
        assert self._memory is not None, "nothing was admitted"
        drawn, done = self._draw(model, self._memory)
        finished = []
        self._keep = []
        for number, slot in enumerate(self._slots):
            slot.ids += drawn[number]
            if done[number]:
                finished.append(_continuation(slot, self._rules.stop))
            else:
                self._keep.append(number)
        self._slots = [self._slots[number] for number in self._keep]
        return finished

    @property
    def _longest(self) -> int:
        return max((slot.cached for slot in self._slots), default=0)

    @property
    def _steps(self) -> int:
        return max((slot.left for slot in self._slots), default=0)

    def _draw(self, model: PreTrainedModel, memory: Memory) -> tuple[list[list[int]], list[bool]]:
        """The tokens drawn for every row, as many for each, and whether it has finished (then the last are waste)."""
        device, steps = model.device, self._steps
        numbers = self._numbers(steps, device)
        left = torch.tensor([slot.left for slot in self._slots], device=device)
        last = torch.tensor([(*slot.row.prompt.ids, *slot.ids)[-1] for slot in self._slots], device=device)
        stop = torch.tensor(sorted(self._rules.stop), device=device, dtype=torch.long)
        done = torch.zeros_like(last, dtype=torch.bool)
        all_sound = torch.ones((), device=device, dtype=torch.bool)
        unseen = 1 if device.type == "cpu" else _STEPS_UNSEEN
        drawn: list[Tensor] = []
        for step in range(1, steps + 1):
            tokens, sound = draw(memory.read(model, last), numbers[:, step - 1], self._rules.temperature)
            last = tokens.to(device)
            drawn.append(last)
            done |= (last[:, None] == stop).any(-1) | (left == step)
            all_sound &= sound.to(device).all()
            if step % unseen == 0 or step == steps:
                finished, fine = torch.stack([done.sum(), all_sound]).tolist()
                if not fine:
                    raise _not_finite()
                if finished >= _FINISHED_SHARE * len(self._slots):
                    break
        return torch.stack(drawn, dim=1).tolist(), done.tolist()

    def _numbers(self, steps: int, device: torch.device) -> Tensor:
        """The next random numbers of every row, [rows, steps]; beyond a row's limit, zeros that nobody uses."""
        numbers = np.zeros((len(self._slots), steps))
        for line, slot in zip(numbers, self._slots, strict=True):
            line[: slot.left] = slot.numbers[len(slot.ids) :]
        # MPS has no float64.
        return torch.from_numpy(numbers).to("cpu" if device.type == "mps" else device)


def _continuation(slot: _Slot, stop: frozenset[int]) -> Continuation:
    ids = slot.ids[: slot.row.limit]
    end = next((place for place, token in enumerate(ids) if token in stop), None)
    return Continuation(slot.row, tuple(ids[:end]), stopped=end is not None)


def _not_finite() -> RealignError:
    return RealignError(
        "cannot sample answers from this checkpoint",
        "the model gives NaN or infinite logits",
        "Its weights are damaged, or its numbers overflow in half precision: try --dtype float32 (or bfloat16).",
    )
