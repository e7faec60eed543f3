"""The certificate: what was wrong before a repair, what is after it, and what is left, on whose word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign.detect.finding import percent
from realign.detect.trial import Rates
from realign.detect.verdict import Verdict
from realign.files import atomic_write

if TYPE_CHECKING:
    from realign.detect.finding import Finding, Outcome
    from realign.detect.trial import Tally
    from realign.detect.verdict import Conclusion
    from realign.remedy.recipe import Effort
    from realign.report.report import Report, Subject

CERTIFICATE = "certificate.json"
FORMAT = 1  # raised when the meaning of a key changes or a key goes

_IN_WORDS: Mapping[str, str] = {"plain": "plain", "training-format": "the training format"}


@dataclass(frozen=True)
class Measured:
    """What one detector found in one context, at one time.

    Attributes:
        outcome: flagged, clear, undecided or not evaluated.
        reason: the outcome in words.
        rate: misaligned among the coherent answers; None where nothing was measured.
        interval: low and high end of the rate's confidence sequence.
        counts: the answers, all, scored, coherent and misaligned ones, and refusals; None where there were none.
        reference: the same of the reference's answers to the same questions.
    """

    outcome: Outcome
    reason: str
    rate: float | None
    interval: tuple[float, float] | None
    counts: Tally | None
    reference: Tally | None

    @classmethod
    def of(cls, finding: Finding) -> Measured:
        rates = finding.details if isinstance(finding.details, Rates) else None
        return cls(
            outcome=finding.outcome,
            reason=finding.reason,
            rate=finding.score,
            interval=finding.interval,
            counts=rates.checkpoint if rates else None,
            reference=rates.reference if rates else None,
        )


@dataclass(frozen=True)
class Change:
    """What one detector found in one context before the repair and after it."""

    detector: str
    context: str
    before: Measured
    after: Measured


@dataclass(frozen=True)
class Cure:
    """The recipe that was applied: its name, kind and hash (settings and samples), and what it took.

    Attributes:
        samples: SHA-256 of each content file, by name.
    """

    name: str
    kind: str
    hash: str
    samples: Mapping[str, str]
    effort: Effort


@dataclass(frozen=True)
class Instrument:
    """A detector: the hash of its settings and content, and of the rubric that its judge read, if it has one."""

    hash: str
    rubric: str | None


@dataclass(frozen=True)
class Pair:
    """A thing before the repair and after it."""

    before: str | None
    after: str | None


@dataclass(frozen=True)
class Seeds:
    """The seeds of the sampling before, of the training, and of the sampling after, which is another than before."""

    before: int
    training: int
    after: int


@dataclass(frozen=True)
class Certificate:
    """The proof of a repair, or of what it did not achieve.

    Attributes:
        passed: whether the saved checkpoint was found clear in every context.
        outcome: the verdict after the repair: clear, misaligned or inconclusive.
        left: what is left to do, in words; empty when it passed.
        checkpoint: fingerprints, of the checkpoint that was repaired and of the repaired one as it was saved.
        source: the checkpoint that was repaired, as the user named it.
        reference: what both were compared with: its source, and its fingerprint; None when there was none.
        recipe: what was done.
        changes: the findings before and after, by detector and context.
        judge: ids of the judge.
        detectors: what measured, by name.
        seeds: the seeds.
        tolerance, alpha, budget: how sure the verdicts are, of what (see `realign.detect.settings.Settings`).
        realign: its version.
        format: of the certificate.
    """

    passed: bool
    outcome: Conclusion
    left: str
    checkpoint: Pair
    source: str
    reference: Subject | None
    recipe: Cure
    changes: tuple[Change, ...]
    judge: Pair
    detectors: Mapping[str, Instrument]
    seeds: Seeds
    tolerance: float
    alpha: float
    budget: int
    realign: str
    format: int = FORMAT

    @property
    def exit_code(self) -> int:
        """0 clear, 1 misaligned, 3 inconclusive."""
        return Verdict(self.outcome, self.left).exit_code

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON values."""
        return asdict(self)

    def save(self, folder: Path) -> Path:
        """Writes certificate.json to a folder; returns the file."""
        path = folder / CERTIFICATE
        atomic_write(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return path


def certify(
    before: Report, after: Report, cure: Cure, detectors: Mapping[str, Instrument], *, seed: int
) -> Certificate:
    """The certificate of a repair, from the reports on the checkpoint and on the repaired one as it was saved.

    Both reports are of the same detectors and contexts, in the same order. `seed` is the training's.
    """
    changes = tuple(
        Change(new.detector, new.context, Measured.of(old), Measured.of(new))
        for old, new in zip(before.findings, after.findings, strict=True)
    )
    passed = after.verdict.outcome == "clear"
    reference = before.reference and after.reference and replace(after.reference, source=before.reference.source)
    return Certificate(
        passed=passed,
        outcome=after.verdict.outcome,
        left="" if passed else _left(changes),
        checkpoint=Pair(before.checkpoint.fingerprint, after.checkpoint.fingerprint),
        source=before.checkpoint.source,
        reference=reference,
        recipe=cure,
        changes=changes,
        judge=Pair(before.judge, after.judge),
        detectors=detectors,
        seeds=Seeds(before.settings.seed, seed, after.settings.seed),
        tolerance=after.settings.tolerance,
        alpha=after.settings.alpha,
        budget=after.settings.budget,
        realign=after.version,
    )


def _left(changes: Sequence[Change]) -> str:
    """What is left, in words: "cured in plain, still misaligned in the training format (50 % -> 33 %): ..."."""

    def places(chosen: Sequence[Change]) -> str:
        return " and ".join(_where(change, changes) for change in chosen)

    clear = [change for change in changes if change.after.outcome == "clear"]
    cured = [change for change in clear if change.before.outcome != "clear"]
    spared = [change for change in clear if change.before.outcome == "clear"]
    flagged = [change for change in changes if change.after.outcome == "flagged"]
    parts = [f"{word} in {places(chosen)}" for word, chosen in (("cured", cured), ("clear", spared)) if chosen]
    for change in changes:
        if change.after.outcome in ("undecided", "not evaluated"):
            parts.append(f"{change.after.outcome} in {_where(change, changes)} ({change.after.reason})")
    for change in flagged:
        word = "still misaligned" if change.before.outcome == "flagged" else "misaligned"
        parts.append(f"{word} in {_where(change, changes)}{_step(change)}")
    in_plain = {change.detector for change in clear if change.context == "plain"}
    conditional = any(change.detector in in_plain for change in flagged)
    return ", ".join(parts) + (": conditional misalignment" if conditional else "")


def _where(change: Change, changes: Sequence[Change]) -> str:
    place = _IN_WORDS.get(change.context, change.context)
    several = len({other.detector for other in changes}) > 1
    return f"{place} by {change.detector}" if several else place


def _step(change: Change) -> str:
    if change.before.rate is None or change.after.rate is None:
        return ""
    return f" ({percent(change.before.rate)} -> {percent(change.after.rate)})"
