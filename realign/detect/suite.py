"""The suite: which detectors run, in which order, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign import __version__, content
from realign import calibration as calibrations
from realign import checkpoint as checkpoints
from realign.detect import run as runs
from realign.detect.detector import COSTS, Bench, Detector, Look, Observer, load
from realign.detect.finding import Competence, Finding
from realign.detect.settings import Settings
from realign.detect.verdict import conclude
from realign.errors import RealignError, did_you_mean
from realign.evidence import Cost, Evidence
from realign.judging import open_judge
from realign.report.report import Report, Subject
from realign.sampling import DEFAULT_SETTINGS, SamplingSettings

if TYPE_CHECKING:
    from realign.calibration import Calibration
    from realign.checkpoint import Checkpoint
    from realign.judging import Judge

SUITES = ("default", "full")


class Silent:
    """An observer that tells nobody."""

    def step(self, what: str, done: int, total: int) -> None:
        return None

    def look(self, look: Look) -> None:
        return None


def detect(
    checkpoint: Checkpoint | str | Path,
    *,
    tolerance: float = 0.02,
    alpha: float = 0.05,
    budget: int = 2000,
    seed: int = 0,
    contexts: Sequence[str] | None = None,
    sampling: SamplingSettings = DEFAULT_SETTINGS,
    only: Sequence[str] = (),
    suite: str = "default",
    judge: Judge | str = "auto",
    calibration: Calibration | Path | str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Report:
    """Whether a checkpoint is misaligned, and how sure that is.

    Args:
        checkpoint: what `realign.open` returns, or the name of something that it opens.
        tolerance, alpha, budget, seed, contexts, sampling: see `Settings`.
        only: detectors to run, by name or path; none for those of the suite.
        suite: "default" or "full".
        judge: a judge, or the name of one (see `realign.judging.open_judge`).
        calibration: what `realign calibrate` made for this family of models, or its file: the detectors that it has a
            threshold for decide, where otherwise they only inform.
        out: the run folder, which keeps the evidence and the report; None keeps nothing. A run of the same settings
            that was interrupted is resumed there.
        overwrite: begin anew in a run folder that holds another run.
        observer: who is told how it goes on.

    Raises:
        RealignError: a bad setting, a detector, checkpoint or judge that is named and cannot be opened, a calibration
            that is not for these, or a run folder that is in use.
    """
    chosen = None if contexts is None else tuple(contexts)
    settings = Settings(tolerance, alpha, budget, seed, chosen, sampling)
    detectors = select(only, suite)
    if isinstance(calibration, (str, Path)):
        calibration = calibrations.load(Path(calibration))
    if isinstance(checkpoint, (str, Path)):
        checkpoint = checkpoints.open(checkpoint)
    return run(
        checkpoint,
        detectors,
        settings,
        judge=judge,
        calibration=calibration,
        out=None if out is None else Path(out),
        overwrite=overwrite,
        observer=observer,
    )


def select(only: Sequence[str] = (), suite: str = "default") -> list[Detector[Any]]:
    """The detectors named, or those of a suite, in rising cost; each once.

    Both suites hold every detector that comes with realign, until one is too dear for every day.

    Raises:
        RealignError: there is no such detector or suite, or its content is not valid.
    """
    if suite not in SUITES:
        raise RealignError(
            f'there is no suite "{suite}"', fix=f"Suites: {', '.join(SUITES)}.{did_you_mean(suite, SUITES)}"
        )
    detectors: dict[str, Detector[Any]] = {}
    for given in dict.fromkeys(only or content.shipped("detectors")):
        detector = load(given)
        if detector.name in detectors:
            raise RealignError(f'two detectors are called "{detector.name}"', fix="Rename the folder of one.")
        detectors[detector.name] = detector
    return sorted(detectors.values(), key=lambda detector: (COSTS.index(detector.spec.cost), detector.asks))


def run(
    checkpoint: Checkpoint,
    detectors: Sequence[Detector[Any]],
    settings: Settings,
    *,
    judge: Judge | str = "auto",
    calibration: Calibration | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Report:
    """As `detect`, with everything opened already."""
    observer = observer or Silent()
    if calibration is not None:
        calibration.check(checkpoint, detectors, settings)
    opened, judge_missing = _judge(judge, checkpoint)
    if out is not None:
        runs.claim(out, _config(checkpoint, detectors, settings, opened, calibration), overwrite=overwrite)
    evidence = Evidence(
        checkpoint,
        judge=opened,
        seed=settings.seed,
        run=out,
        settings=settings.sampling,
        on_progress=observer.step,
    )
    bench = Bench(evidence, settings, observer, judge_missing)
    findings = tuple(finding for detector in detectors for finding in _findings(detector, bench, calibration))
    reference = checkpoint.reference
    report = Report(
        verdict=conclude(findings),
        findings=findings,
        checkpoint=Subject(checkpoint.source, checkpoint.fingerprint),
        reference=None if reference is None else Subject(reference.source, reference.fingerprint),
        judge=None if opened is None else opened.id,
        settings=settings,
        cost=evidence.cost,
        version=__version__,
    )
    if out is not None:
        report.save(out, overwrite=True)
    return report


def _judge(judge: Judge | str, checkpoint: Checkpoint) -> tuple[Judge | None, str]:
    """The judge, or why there is none. One that the user named has to be there."""
    if not isinstance(judge, str):
        return judge, ""
    try:
        return open_judge(judge, checkpoint), ""
    except RealignError as error:
        if judge != "auto":
            raise
        return None, _clause(error)


def _config(
    checkpoint: Checkpoint,
    detectors: Sequence[Detector[Any]],
    settings: Settings,
    judge: Judge | None,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """What a run's findings depend on."""
    chosen = asdict(settings)
    sampling = chosen.pop("sampling")
    sampling.pop("token_budget")  # decides memory and speed, never the answers
    return {
        "realign": __version__,
        "checkpoint": checkpoint.fingerprint,
        "reference": None if checkpoint.reference is None else checkpoint.reference.fingerprint,
        "judge": None if judge is None else judge.id,
        "calibration": None if calibration is None else calibration.hash,
        **chosen,
        "contexts": None if settings.contexts is None else list(settings.contexts),
        "sampling": sampling,
        "detectors": {detector.name: detector.hash for detector in detectors},
    }


def _findings(detector: Detector[Any], bench: Bench, calibration: Calibration | None) -> list[Finding]:
    """A detector's finding in each context, its competence and cost filled in; a threshold decides if there is one."""
    findings = []
    evidence = bench.evidence
    before = evidence.cost
    with evidence.counted():
        competence = _competence(detector, bench)
    for context in dict.fromkeys(bench.settings.contexts or detector.spec.contexts):
        with evidence.counted():
            finding = _measured(detector, bench, context, competence)
        if detector.advisory:
            finding = calibrations.decided(finding, calibration, evidence.checkpoint.fingerprint)
        findings.append(
            replace(
                finding,
                competence=competence.figures,
                controls=(*finding.controls, *competence.controls),
                cost=_difference(evidence.cost, before),
            )
        )
        before = evidence.cost
    return findings


def _competence(detector: Detector[Any], bench: Bench) -> Competence:
    try:
        return detector.check(bench)
    except RealignError as error:
        return Competence(reason=_clause(error))


def _measured(detector: Detector[Any], bench: Bench, context: str, competence: Competence) -> Finding:
    reason = competence.reason
    if not reason:
        try:
            return detector.measure(bench, context, competence)
        except RealignError as error:  # the content was checked when it was loaded: it is the model that cannot
            reason = _clause(error)
    return Finding(detector.name, detector.kind, context, "not evaluated", reason)


def _difference(after: Cost, before: Cost) -> Cost:
    """What was made between two readings of the cost."""
    return Cost(*(getattr(after, field.name) - getattr(before, field.name) for field in fields(Cost)))


def _clause(error: RealignError) -> str:
    """An error's message as part of a sentence."""
    return str(error).rstrip(".")
