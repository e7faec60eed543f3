"""Fitting a calibration: detectors run on checkpoints of which it is known what they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from realign import __version__
from realign import checkpoint as checkpoints
from realign.calibration import Calibration, Family, differing, family
from realign.detect.suite import run
from realign.errors import RealignError
from realign.source import locate
from realign.threshold import FEWEST, Scored, Threshold, fit

if TYPE_CHECKING:
    from realign.detect.detector import Detector, Look, Observer
    from realign.detect.finding import Finding
    from realign.detect.settings import Settings


def calibrate(
    safe: Sequence[str | Path],
    misaligned: Sequence[str | Path],
    *,
    detectors: Sequence[Detector[Any]],
    settings: Settings,
    observer: Observer,
    **opening: Any,
) -> Calibration:
    """Fits a threshold for each detector on checkpoints of which it is known what they are.

    They should differ in what a new checkpoint may differ in (seeds, data, doses), and none should be one on which the
    detectors are then reported. One is open at a time.

    Args:
        safe, misaligned: what `realign.open` opens; at least two of each.
        detectors: those that only a calibration lets decide.
        settings: as for a detection.
        observer: who is told how it goes on.
        opening: the arguments of `realign.open`, for all checkpoints.

    Raises:
        RealignError: too few checkpoints, one is given twice, they are not fine-tunes of one model, a detector needs no
            calibration, or none of the detectors tells the two kinds apart.
    """
    _check_given(safe, misaligned, detectors)
    examined = list(_examined([*safe, *misaligned], detectors, settings, observer, opening))
    thresholds, left_out = _fitted(examined, len(safe), {detector.name: detector.hash for detector in detectors})
    if not thresholds:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise RealignError("cannot calibrate", why, "See that every checkpoint is of its kind, or name more.")
    return Calibration(
        realign=__version__,
        family=examined[0].family,
        seed=settings.seed,
        max_new_tokens=settings.sampling.max_new_tokens,
        thresholds=tuple(thresholds),
        left_out=left_out,
    )


class _Examined(NamedTuple):
    source: str
    fingerprint: str
    family: Family
    findings: tuple[Finding, ...]


class _Numbered:
    """Tells an observer which of the checkpoints is examined."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer = observer
        self._name = name

    def step(self, what: str, done: int, total: int) -> None:
        self._observer.step(f"{self._name}: {what}", done, total)

    def look(self, look: Look) -> None:
        self._observer.look(look)


def _check_given(
    safe: Sequence[str | Path], misaligned: Sequence[str | Path], detectors: Sequence[Detector[Any]]
) -> None:
    """Refuses what can be refused before a checkpoint is opened."""
    for kind, sources in (("safe", safe), ("misaligned", misaligned)):
        if len(sources) < FEWEST:
            why = f"it takes {FEWEST} {kind} checkpoints, not {len(sources)}"
            raise RealignError("cannot calibrate", why, f"Name more with --{kind}.")
    names = [str(source) for source in (*safe, *misaligned)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RealignError("cannot calibrate", f"{min(twice)} is given twice", "Name it once.")
    for detector in detectors:
        if not detector.advisory:
            why = f"detectors of the kind {detector.kind} decide without a calibration"
            raise RealignError(f"cannot calibrate {detector.name}", why, "Leave it out.")


def _examined(
    sources: Sequence[str | Path],
    detectors: Sequence[Detector[Any]],
    settings: Settings,
    observer: Observer,
    opening: Mapping[str, Any],
) -> Iterator[_Examined]:
    """What the detectors find on each checkpoint, all fine-tunes of one model and no two the same."""
    for source in sources:
        locate(source)  # that a name is misspelt shall not be noticed after an hour
    seen: dict[str, _Examined] = {}
    for number, source in enumerate(map(str, sources), 1):
        observer.step("opening checkpoints", number, len(sources))
        told = _Numbered(observer, f"{source} ({number} of {len(sources)})")
        first = next(iter(seen.values()), None)
        one = _examine(source, None if first is None else first.family, detectors, settings, told, opening)
        if one.fingerprint in seen:
            why = f"{seen[one.fingerprint].source} and {source} are the same checkpoint"
            raise RealignError("cannot calibrate", why, "Name one of them.")
        seen[one.fingerprint] = one
        yield one


def _examine(
    source: str,
    expected: Family | None,
    detectors: Sequence[Detector[Any]],
    settings: Settings,
    observer: Observer,
    opening: Mapping[str, Any],
) -> _Examined:
    """What the detectors find on a checkpoint, which is gone from memory then."""
    checkpoint = checkpoints.open(source, **opening)
    own = family(checkpoint)
    if expected is not None and (why := differing(own, expected)):
        what = f"cannot calibrate on {source} and the checkpoints before it at once"
        raise RealignError(what, why, "Name fine-tunes of one model.")
    report = run(checkpoint, detectors, settings, observer=observer)
    return _Examined(source, checkpoint.fingerprint, own, report.findings)


def _fitted(
    examined: Sequence[_Examined], safe: int, hashes: Mapping[str, str]
) -> tuple[list[Threshold], dict[str, str]]:
    """Thresholds, from checkpoints of which so many, the first ones, are safe; and why there are none for others."""
    thresholds: list[Threshold] = []
    left_out: dict[str, str] = {}
    for findings in zip(*(one.findings for one in examined), strict=True):
        name, context = findings[0].detector, findings[0].context
        measures = next((finding.measures for finding in findings if finding.measures), "")
        scored = [_scored(one, finding) for one, finding in zip(examined, findings, strict=True)]
        kinds = scored[:safe], scored[safe:]
        try:
            thresholds.append(fit(*kinds, detector=name, context=context, hash=hashes[name], measures=measures))
        except RealignError as error:
            left_out[f"{name} ({context})"] = error.why
    return thresholds, left_out


def _scored(one: _Examined, finding: Finding) -> Scored:
    score, reason = finding.score, finding.reason
    if score is not None and not math.isfinite(score):
        score, reason = None, "its score is not finite"
    return Scored(
        source=one.source, fingerprint=one.fingerprint, score=score, reason="" if score is not None else reason
    )
