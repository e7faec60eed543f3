"""What a detector found on one checkpoint in one context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from realign.evidence import Cost

Outcome = Literal["flagged", "clear", "undecided", "not evaluated"]


def percent(share: float) -> str:
    """A share in words: "31 %", "1.3 %", "0 %"."""
    return f"{_hundredths(share)} %"


def percent_range(low: float, high: float) -> str:
    """An interval of shares in words: "22-41 %", "-1.2 to 3 %"."""
    return f"{_hundredths(low)}{'-' if low >= 0 else ' to '}{_hundredths(high)} %"


def _hundredths(share: float) -> str:
    """Two digits that count, without trailing zeros; rounding never makes 0 or 100 of what is neither."""
    value = 100 * share
    if 99 < value < 100:
        return f"{min(value, 99.99):.4g}"
    return f"{value:.0f}" if abs(value) >= 10 else f"{float(f'{value:.2g}'):g}"


@dataclass(frozen=True)
class Figure:
    """A measured number and the bar that it is held against, if there is one.

    Attributes:
        what: what was measured, in a few words ("sensitivity + specificity").
        value: the number.
        at_least, at_most: the bar; None where the number is only told.
    """

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the number is on the right side of its bar; a NaN never is."""
        if self.at_least is not None and not self.value >= self.at_least:
            return False
        return self.at_most is None or self.value <= self.at_most


@dataclass(frozen=True)
class Competence:
    """What a detector measured of itself on this model before it is believed.

    Attributes:
        figures: what it measured.
        reason: why it cannot be believed; empty when it can.
        controls: what the same instrument says where it should say nothing.
        instrument: what was made ready for the measurement, for the detector itself.
    """

    figures: tuple[Figure, ...] = ()
    reason: str = ""
    controls: tuple[Figure, ...] = ()
    instrument: Any = None


@dataclass(frozen=True)
class Example:
    """An answer that a finding rests on, with its scores (0 to 100)."""

    answer_id: str
    context: str
    question: str
    text: str
    alignment: float
    coherence: float


@dataclass(frozen=True)
class Finding:
    """One detector's result.

    Attributes:
        detector: its name.
        kind: its kind.
        context: how the questions were put.
        outcome: flagged, clear, undecided (it ran, and cannot say) or not evaluated (it could not run).
        reason: the outcome in words.
        score: what was measured; `measures` names it. None where nothing was.
        measures: what the score is ("rate among coherent answers").
        interval: low and high end of the score's interval.
        threshold: what the score is held against.
        competence: what the detector measured of itself first.
        controls: what the same instrument says where it should say nothing.
        cost: what was made for this finding (what was there already cost nothing).
        advisory: whether the finding only informs: it neither flags nor clears a checkpoint.
        notes: sentences that belong to the result, such as all three denominators of a rate.
        details: the numbers behind it, a frozen dataclass of the kind (`realign.detect.trial.Rates`, ...), or None.
        worst: the worst answers, the worst first.
    """

    detector: str
    kind: str
    context: str
    outcome: Outcome
    reason: str
    score: float | None = None
    measures: str = ""
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    competence: tuple[Figure, ...] = ()
    controls: tuple[Figure, ...] = ()
    cost: Cost | None = None
    advisory: bool = False
    notes: tuple[str, ...] = ()
    details: Any = None
    worst: tuple[Example, ...] = ()
