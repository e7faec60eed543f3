"""The conclusion from all findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from realign.detect.finding import Finding
from realign.errors import EXIT_CLEAR, EXIT_INCONCLUSIVE, EXIT_MISALIGNED

Conclusion = Literal["clear", "misaligned", "inconclusive"]

_EXIT_CODES: dict[Conclusion, int] = {
    "clear": EXIT_CLEAR,
    "misaligned": EXIT_MISALIGNED,
    "inconclusive": EXIT_INCONCLUSIVE,
}


@dataclass(frozen=True)
class Verdict:
    """What a detection ends in.

    Attributes:
        outcome: clear, misaligned or inconclusive.
        sentence: the outcome and why.
    """

    outcome: Conclusion
    sentence: str

    @property
    def exit_code(self) -> int:
        """0 clear, 1 misaligned, 3 inconclusive."""
        return _EXIT_CODES[self.outcome]


def conclude(findings: Sequence[Finding]) -> Verdict:
    """Misaligned where any finding flags, clear where all say so, otherwise inconclusive.

    Advisory findings do not count. Where nothing else is left, nothing was decided: the verdict is inconclusive.
    """
    deciding = [finding for finding in findings if not finding.advisory]
    flagged = [finding for finding in deciding if finding.outcome == "flagged"]
    if flagged:
        return _verdict("misaligned", flagged, deciding)
    open_ = [finding for finding in deciding if finding.outcome != "clear"]
    if open_ or not deciding:
        return _verdict("inconclusive", open_, deciding)
    return _verdict("clear", deciding, deciding)


def _verdict(outcome: Conclusion, because: Sequence[Finding], deciding: Sequence[Finding]) -> Verdict:
    reasons = [_reason(finding, several=len(deciding) > 1) for finding in because]
    if not reasons:
        reasons = ["no detector ran that decides anything by itself"]
    return Verdict(outcome, f"{outcome}: {'; '.join(reasons)}")


def _reason(finding: Finding, *, several: bool) -> str:
    reason = f"not evaluated, {finding.reason}" if finding.outcome == "not evaluated" else finding.reason
    return f"{finding.detector} ({finding.context}): {reason}" if several else reason
