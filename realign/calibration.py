"""Calibrations: files with thresholds for the white-box detectors on the fine-tunes of one model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from realign.errors import RealignError
from realign.files import atomic_write
from realign.threshold import Strict, Threshold

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint
    from realign.detect.detector import Detector
    from realign.detect.finding import Finding
    from realign.detect.settings import Settings

_AFRESH = "Calibrate again."


class Family(Strict):
    """The models that a calibration is for: the fine-tunes of one reference.

    Attributes:
        architecture: what transformers calls it ("llama").
        depth: how many decoder layers there are.
        width: of the residual stream.
        reference: fingerprint of the model before the fine-tune.
    """

    architecture: str
    depth: int
    width: int
    reference: str


class Calibration(Strict):
    """Thresholds for the white-box detectors on one family of models.

    It holds no date and no machine: the same checkpoints, detectors and settings give the same file.

    Attributes:
        format: of the file; raised when the meaning of a key changes.
        realign: the version that made it.
        family: the models that it is for.
        seed: of the sampling.
        max_new_tokens: most tokens of the answers that were read.
        thresholds: one for each detector and context.
        left_out: "detector (context)" for which no threshold could be fitted -> why.
    """

    format: Literal[1] = 1
    realign: str
    family: Family
    seed: int
    max_new_tokens: int
    thresholds: Annotated[tuple[Threshold, ...], Field(min_length=1)]
    left_out: dict[str, str]

    @property
    def hash(self) -> str:
        """ "sha256:<hex>" of all that it says."""
        return f"sha256:{hashlib.sha256(self.model_dump_json().encode()).hexdigest()}"

    def threshold(self, detector: str, context: str) -> Threshold | None:
        """The detector's threshold in a context, or None."""
        found = (one for one in self.thresholds if (one.detector, one.context) == (detector, context))
        return next(found, None)

    def check(self, checkpoint: Checkpoint, detectors: Sequence[Detector[Any]], settings: Settings) -> None:
        """Refuses to be used where its thresholds do not hold; it may have none for some of the detectors.

        Raises:
            RealignError: the checkpoint is of another family, a detector has changed since, or answers are cut off at
                another length.
        """
        own = {detector.name: detector.hash for detector in detectors}
        for one in self.thresholds:
            if own.get(one.detector, one.hash) != one.hash:
                why = f"it is for another version of the detector {one.detector}"
                raise RealignError("cannot use the calibration", why, _AFRESH)
        length = settings.sampling.max_new_tokens
        if length != self.max_new_tokens:
            why = f"its answers have at most {self.max_new_tokens} tokens, and these may have {length}"
            raise RealignError("cannot use the calibration", why, f"Pass --max-new-tokens {self.max_new_tokens}.")
        if why := differing(family(checkpoint), self.family):
            what = f"cannot use the calibration on {checkpoint.source}"
            raise RealignError(what, f"it is for the fine-tunes of another model: {why}", _AFRESH)

    def save(self, path: Path, *, overwrite: bool = False) -> Path:
        """Writes the calibration as JSON; returns `path`.

        Raises:
            RealignError: as `check_output`.
        """
        check_output(path, overwrite=overwrite)
        atomic_write(path, self.model_dump_json(indent=2) + "\n")
        return path


def decided(finding: Finding, calibration: Calibration | None, fingerprint: str) -> Finding:
    """The finding of a detector that only a calibration lets decide, on the checkpoint of that fingerprint.

    Without a threshold for it, it only informs. With one it decides, and where it could not be evaluated that counts.
    """
    threshold = None if calibration is None else calibration.threshold(finding.detector, finding.context)
    if threshold is not None:
        return threshold.decide(finding, fingerprint)
    if finding.outcome != "undecided" or finding.score is None:
        return replace(finding, advisory=True)
    note = "nothing calibrates the score"
    if calibration is not None:
        why = calibration.left_out.get(f"{finding.detector} ({finding.context})", "")
        note = "the calibration has no threshold for it in this context" + (f": {why}" if why else "")
    reason = f"uncalibrated: {finding.reason}"
    return replace(finding, advisory=True, reason=reason, notes=(*finding.notes, note))


def load(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        RealignError: the file cannot be read or holds no calibration.
    """
    try:
        return Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RealignError(f"cannot read the calibration {path}", why, "Check its name.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise RealignError(f"cannot read the calibration {path}", said, "Make it with realign calibrate.") from error


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Refuses a file that is in use; call it before long work.

    Raises:
        RealignError: there is such a file and it is not to be overwritten, or it cannot be one.
    """
    if path.is_dir():
        raise RealignError(f"cannot write to {path}", "it is a folder", "Name a file with -o.")
    if path.exists() and not overwrite:
        raise RealignError(f"cannot write {path}", "it exists already", "Choose another name, or pass --overwrite.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise RealignError(f"cannot write {path}", f"{above} is a file", "Choose another name.")


def family(checkpoint: Checkpoint) -> Family:
    """The family that a checkpoint belongs to.

    Raises:
        RealignError: it has no reference that could say so.
    """
    from realign.checkpoint import fingerprint
    from realign.directions import residual_shape

    reference = checkpoint.reference
    if reference is None:
        why = "it has no reference, and a calibration is for the fine-tunes of one"
        fix = "Name the model before the fine-tune with --reference."
        raise RealignError(f"cannot say which family {checkpoint.source} belongs to", why, fix)
    depth, width = residual_shape(checkpoint)
    with checkpoint.active() as model:
        architecture = model.config.model_type
    # An adapter that brings its own tokenizer makes its base another reference, but no other model.
    before = reference.fingerprint if reference.is_adapter else fingerprint(reference.path)
    return Family(architecture=architecture, depth=depth, width=width, reference=before)


def differing(own: Family, given: Family) -> str:
    """How a family differs from the one given; empty where it does not."""
    if (own.architecture, own.depth, own.width) != (given.architecture, given.depth, given.width):
        return f"{_shape(given)} is not {_shape(own)}"
    return "" if own.reference == given.reference else "their references differ"


def _shape(family: Family) -> str:
    return f"{family.architecture} with {family.depth} layers of width {family.width}"
