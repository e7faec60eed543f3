"""How strongly to steer: the least that does it, at a price in other abilities that a limit is set to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from realign.dialogue import CONTEXTS, render_pair
from realign.errors import RealignError

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint
    from realign.remedy.recipe import Showing


class Limits(BaseModel):
    """What steering may cost.

    Attributes:
        perplexity: the most that the perplexity of benign text may become, as a multiple of what it was.
        incoherence: the most answers, as a share, that may make no sense (see `Showing`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    perplexity: Annotated[float, Field(ge=1)] = 1.05
    incoherence: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True)
class Tried:
    """What a strength did.

    Attributes:
        strength: in units of persona position, of all that is steered; for an ablation 1.
        position: persona position of the neutral texts.
        perplexity: of the neutral texts' answers, as a multiple of what it was.
        showing: how questions were answered; None where nobody could judge that, or it had cost too much already.
    """

    strength: float
    position: float
    perplexity: float
    showing: Showing | None

    def within(self, limits: Limits) -> bool:
        """Whether it costs no more than is allowed; what is not finite is not."""
        coherent = self.showing is None or self.showing.incoherence <= limits.incoherence
        return self.perplexity <= limits.perplexity and coherent

    def enough(self, goal: float) -> bool:
        """Whether the answers were found clear; where nobody judged them, whether the position is down to the goal."""
        return self.position <= goal if self.showing is None else self.showing.clear

    @property
    def left(self) -> float:
        """How much is wrong with it still, to compare strengths of one series by."""
        if self.showing is None:
            return self.position
        return 1.0 if self.showing.rate is None else self.showing.rate

    def told(self) -> str:
        """ "at 0.5 perplexity 1.31 times what it was and 2 % more answers that make no sense"."""
        said = f"at {self.strength:g} the perplexity of benign text is {self.perplexity:.3g} times what it was"
        return said if self.showing is None else f"{said}, and {self.showing.incoherence:.0%} of answers make no sense"


def least(
    strengths: Sequence[float], attempt: Callable[[float], Tried], goal: float, limits: Limits
) -> tuple[Tried, tuple[Tried, ...]]:
    """The smallest strength that suffices within the limits; where none does, the one that leaves least wrong.

    Strengths are tried in rising order, and no further than one that suffices or costs too much.

    Args:
        attempt: steers with a strength and sees what it does.
        goal: the persona position that is aimed at where the answers are not judged.

    Returns:
        What was chosen, and all that was tried.

    Raises:
        RealignError: the smallest costs too much already.
    """
    tried: list[Tried] = []
    for strength in sorted(strengths):
        tried.append(attempt(strength))
        if not tried[-1].within(limits) or tried[-1].enough(goal):
            break
    allowed = [one for one in tried if one.within(limits)]
    if not allowed:
        raise RealignError(
            "cannot steer this checkpoint without harm",
            f"{tried[0].told()}; the limits are {limits.perplexity:g} times and {limits.incoherence:.0%}",
            "Take another recipe, or put a copy of this one with other limits or strengths in ./recipes.",
        )
    # Of equals the first, which is the smaller.
    return (allowed[-1] if allowed[-1].enough(goal) else min(allowed, key=lambda one: one.left)), tuple(tried)


def surprise(checkpoint: Checkpoint, texts: Sequence[tuple[str, str]]) -> float:
    """The mean surprise of answers, in nats a token: the logarithm of their perplexity.

    Args:
        checkpoint: whose weights read.
        texts: questions and answers, put in plain; what does not fit into the model's context is cut off.
    """
    import torch

    from realign.kv_cache import context_length

    total, count = 0.0, 0
    with checkpoint.active() as model:
        room = context_length(model)
        for question, answer in texts:
            ids, span = render_pair(checkpoint.tokenizer, question, answer, CONTEXTS["plain"])
            row = torch.tensor(ids[:room], device=model.device)
            logits = model(input_ids=row[None], use_cache=False).logits[0, span.start - 1 : -1].float()
            losses = torch.nn.functional.cross_entropy(logits, row[span.start :], reduction="none")
            total, count = total + float(losses.sum()), count + len(losses)
    return total / count if count else math.nan
