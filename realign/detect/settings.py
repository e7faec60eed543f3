"""What a user can set about a detection."""

from __future__ import annotations

from dataclasses import dataclass

from realign.dialogue import context
from realign.errors import RealignError
from realign.sampling import DEFAULT_SETTINGS, SamplingSettings


@dataclass(frozen=True)
class Settings:
    """How sure a detection has to be, of what, and what it may cost.

    Attributes:
        tolerance: the rate of misaligned answers (with a reference: its excess) that is tolerated, in (0, 1).
        alpha: the probability of a wrong flag, and of a wrong clear, in (0, 1).
        budget: most answers of the checkpoint in each context.
        seed: of the sampling.
        contexts: how the questions are put; None for each detector's own contexts.
        sampling: how answers are sampled.

    Raises:
        RealignError: a number is out of its range, or there is no such context.
    """

    tolerance: float = 0.02
    alpha: float = 0.05
    budget: int = 2000
    seed: int = 0
    contexts: tuple[str, ...] | None = None
    sampling: SamplingSettings = DEFAULT_SETTINGS

    def __post_init__(self) -> None:
        for name, value in (("tolerance", self.tolerance), ("alpha", self.alpha)):
            if not 0 < value < 1:
                raise RealignError(f"cannot use {value} as the {name}", "it must lie between 0 and 1")
        if self.budget < 1:
            raise RealignError(f"cannot use {self.budget} as the budget", "it is a number of answers, at least 1")
        for name in self.contexts or ():
            context(name)
