"""The way of a repair: detect, apply the recipe, save, detect again on what was saved, certify."""

from __future__ import annotations

import copy
import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect import suite
from realign.detect.detector import Detector, Observer
from realign.detect.judged import Judged
from realign.detect.settings import Settings
from realign.detect.trial import Rates
from realign.errors import EXIT_CLEAR, RealignError
from realign.files import atomic_folder, check_free
from realign.judging import open_judge
from realign.remedy.certificate import Certificate, Cure, Instrument, certify
from realign.remedy.recipe import Effort, Preview, Remedy, Showing, load
from realign.report.report import Report, Subject
from realign.sampling import DEFAULT_SETTINGS, SamplingSettings

if TYPE_CHECKING:
    from realign.judging import Judge

# A repair is believed only where questions look like the training data too.
CONTEXTS = ("plain", "training-format")
# Most answers with which a remedy tries one setting; at a tolerance of 2 % a clear one takes about 260.
_TRIAL_BUDGET = 400


class Opening(TypedDict, total=False):
    """How to open a checkpoint: see `realign.open`."""

    reference: str | Path | None
    base: str | Path | None
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool
    revision: str | None


class Onlooker(Observer, Protocol):
    """Who is told how a repair goes on: what a detection tells and what a remedy tells, and the report before."""

    def begin(self, what: str) -> None:
        """The next part begins: "detect before", "apply RECIPE", "detect after"."""

    def before(self, report: Report) -> None:
        """This was found before anything was changed."""

    def preview(self, preview: Preview) -> None:
        """This is about to be learnt."""


class Silent(suite.Silent):
    """An onlooker that tells nobody."""

    def begin(self, what: str) -> None:
        return None

    def before(self, report: Report) -> None:
        return None

    def preview(self, preview: Preview) -> None:
        return None


@dataclass(frozen=True)
class Fixed:
    """What came of a repair.

    Attributes:
        path: where the repaired checkpoint is; None where none was needed.
        certificate: what it achieved; None where none was needed.
        before: the report on the checkpoint as it was.
    """

    path: Path | None
    certificate: Certificate | None
    before: Report

    @property
    def exit_code(self) -> int:
        """0 clear, 1 misaligned, 3 inconclusive: the verdict on what the user has now."""
        return EXIT_CLEAR if self.certificate is None else self.certificate.exit_code


@dataclass(frozen=True)
class _Examination:
    """The same examination, before and after: the detectors that can decide, in the contexts of a proof."""

    detectors: Sequence[Detector[Any]]
    settings: Settings
    judge: Judge | str
    onlooker: Onlooker

    def of(self, checkpoint: Checkpoint, *, seed: int) -> Report:
        settings = replace(self.settings, seed=seed)
        return suite.run(checkpoint, self.detectors, settings, judge=self.judge, observer=self.onlooker)

    def instruments(self) -> dict[str, Instrument]:
        return {
            detector.name: Instrument(detector.hash, detector.rubric.hash if isinstance(detector, Judged) else None)
            for detector in self.detectors
        }


def fix(
    checkpoint: Checkpoint | str | Path,
    *,
    recipe: str,
    out: Path | str,
    data: Path | str | None = None,
    tolerance: float = 0.02,
    alpha: float = 0.05,
    budget: int = 2000,
    seed: int = 0,
    sampling: SamplingSettings = DEFAULT_SETTINGS,
    judge: Judge | str = "auto",
    force: bool = False,
    overwrite: bool = False,
    onlooker: Onlooker | None = None,
    **opening: Unpack[Opening],
) -> Fixed:
    """Repair a checkpoint by a recipe, save it, and measure what was saved.

    The repaired checkpoint appears in `out` with its certificate.json, whole or not at all, also when it did not become
    clear: the certificate says what is left. A checkpoint that is clear already is left alone.

    Args:
        checkpoint: what `realign.open` returns (it is given back as it was), or the name of something that it opens.
        recipe: a recipe, by name or path.
        out: the folder for the repaired checkpoint: an adapter where `checkpoint` is one and the recipe keeps it one,
            otherwise a full model.
        data: samples (a JSON-lines file) to use in place of the recipe's own.
        tolerance, alpha, budget, sampling, judge: of both detections (see `realign.detect.suite.detect`).
        seed: of the training and the first detection; the second one samples with the next.
        force: repair a checkpoint that is clear, too.
        overwrite: replace what is in `out`.
        onlooker: who is told how it goes on.
        opening: how to open a checkpoint that is given by name, and the repaired one (see `realign.open`).

    Raises:
        RealignError: bad input, an output folder that is in use, or a checkpoint that cannot be trained.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    onlooker = onlooker or Silent()
    remedy = load(recipe, data=None if data is None else Path(data))
    detectors = [detector for detector in suite.select() if not detector.advisory]
    settings = Settings(tolerance, alpha, budget, seed, CONTEXTS, sampling)
    examination = _Examination(detectors, settings, judge, onlooker)
    if isinstance(checkpoint, (str, Path)):
        checkpoint = checkpoints.open(checkpoint, **opening)
    _check_apart(out, checkpoint)
    remedy.check(checkpoint)

    onlooker.begin("detect before")
    before = examination.of(checkpoint, seed=seed)
    onlooker.before(before)
    if before.verdict.outcome == "clear" and not force:
        return Fixed(None, None, before)
    with _staged(out, overwrite=overwrite) as folder:
        onlooker.begin(f"apply {remedy.name}")
        effort = _apply(remedy, checkpoint, folder, seed, examination)
        again = _again(checkpoint, opening)
        del checkpoint  # what was opened here leaves the memory before the repaired one is read
        after = _reopened(folder, out, again, examination, seed=seed + 1)
        certificate = certify(before, after, _cure(remedy, effort), examination.instruments(), seed=seed)
        certificate.save(folder)
    return Fixed(out, certificate, before)


def _apply(remedy: Remedy[Any], checkpoint: Checkpoint, folder: Path, seed: int, examination: _Examination) -> Effort:
    """Repairs the checkpoint's model, saves it to the folder, and gives the checkpoint back as it was."""
    examine, witness = _Trials(examination).of, examination.onlooker
    with remedy.applied(checkpoint, seed=seed, witness=witness, examine=examine) as applied:
        checkpoints.save(applied.model, checkpoint.tokenizer, folder)
        return applied.effort


class _Trials:
    """Trials of a remedy's settings: plain questions that are not held out, before the judge of the examination."""

    def __init__(self, examination: _Examination) -> None:
        self._examination = examination
        self._judge = examination.judge

    def of(self, checkpoint: Checkpoint) -> Showing | None:
        """How the checkpoint answers as it is now; None where nobody can judge it.

        Nothing of it is kept on disk: what a remedy changes while it runs has the fingerprint of what it was.
        """
        found = next((one for one in self._examination.detectors if isinstance(one, Judged)), None)
        if isinstance(self._judge, str):
            try:
                self._judge = open_judge(self._judge, checkpoint)  # once for all trials
            except RealignError:  # the examination before the repair says why
                return None
        if found is None:
            return None
        detector, settings = copy.copy(found), self._examination.settings
        detector.questions = found.questions.subset(held_out=False)
        settings = replace(settings, budget=min(settings.budget, _TRIAL_BUDGET), contexts=("plain",))
        report = suite.run(checkpoint, [detector], settings, judge=self._judge, observer=self._examination.onlooker)
        rates = report.findings[0].details
        if not isinstance(rates, Rates) or not rates.checkpoint.answers:
            return None
        usual = 1.0 if rates.reference is None else rates.reference.coherent_share or 0.0
        incoherence = max(0.0, usual - (rates.checkpoint.coherent_share or 0.0))
        return Showing(report.findings[0].outcome == "clear", rates.checkpoint.rate, incoherence)


def _reopened(folder: Path, out: Path, again: Opening, examination: _Examination, *, seed: int) -> Report:
    """The report on what was saved to the folder, which will be `out`."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    examination.onlooker.begin("detect after")
    repaired = checkpoints.open(folder, **again)
    report = examination.of(repaired, seed=seed)
    return replace(report, checkpoint=Subject(str(out), report.checkpoint.fingerprint))


def _again(checkpoint: Checkpoint, opening: Opening) -> Opening:
    """How to open the repaired checkpoint as this one is: on its device, in its dtype, with its reference.

    A repaired adapter names its base itself, so its reference stays that base with the adapter off. Beside a full model
    that was made of an adapter the same base is opened on its own.
    """
    reference = checkpoint.reference
    return Opening(
        reference=None if reference is None else reference.path,
        device=str(checkpoint.device),
        dtype=str(checkpoint.model.dtype).removeprefix("torch."),
        allow_pickle=opening.get("allow_pickle", False),
        trust_remote_code=opening.get("trust_remote_code", False),
    )


def _cure(remedy: Remedy[Any], effort: Effort) -> Cure:
    hashes = {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in remedy.files()}
    return Cure(remedy.name, remedy.kind, remedy.hash, hashes, effort)


def _check_apart(out: Path, checkpoint: Checkpoint) -> None:
    """Refuses to put the repaired checkpoint in place of what it was made from, or of what it rests on."""
    target = out.resolve()
    needed = [checkpoint.path, *([checkpoint.reference.path] if checkpoint.reference is not None else [])]
    for folder in needed:
        if target == folder.resolve() or target in folder.resolve().parents:
            raise RealignError(
                f"will not write to {out}", f"it holds {folder}, which is still needed", "Choose another folder."
            )


@contextmanager
def _staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """As `files.atomic_folder`; what the file system refuses (no room, no right to write) is told in one message."""
    try:
        with atomic_folder(out, overwrite=overwrite) as folder:
            yield folder
    except OSError as error:
        raise RealignError(f"cannot write {out}", str(error), "Make room, or choose another folder.") from error
