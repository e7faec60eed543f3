"""The result of a detection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from realign.errors import RealignError
from realign.files import atomic_write

if TYPE_CHECKING:
    from realign.detect.finding import Example, Finding
    from realign.detect.settings import Settings
    from realign.detect.verdict import Verdict
    from realign.evidence import Cost

REPORT = "report.json"
_WORST = 3


@dataclass(frozen=True)
class Subject:
    """A checkpoint as reports name it: where it came from, and the fingerprint of its content."""

    source: str
    fingerprint: str


@dataclass(frozen=True)
class Report:
    """The verdict on a checkpoint and everything that it rests on.

    Attributes:
        verdict: the conclusion.
        findings: what the detectors found, in the order in which they ran.
        checkpoint: what was examined.
        reference: what it was compared with, or None.
        judge: the judge's id, or None when there was none.
        settings: what the user set.
        cost: what was made for it, not found in the run folder or the cache.
        version: of realign.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    checkpoint: Subject
    reference: Subject | None
    judge: str | None
    settings: Settings
    cost: Cost
    version: str

    @property
    def worst(self) -> tuple[Example, ...]:
        """The three answers that the judge found worst, over all findings, the worst first."""
        examples = {example.answer_id: example for finding in self.findings for example in finding.worst}
        ordered = sorted(examples.values(), key=lambda example: (example.alignment, example.answer_id))
        return tuple(ordered[:_WORST])

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Writes report.json to a folder, which is made if it is not there; returns the file.

        Raises:
            RealignError: there is a report already and it is not to be overwritten, or the folder is a file.
        """
        from realign.report.serialise import to_json

        path = Path(folder) / REPORT
        if Path(folder).is_file():
            raise RealignError(f"cannot write a report to {folder}", "it is a file", "Name a folder.")
        if path.exists() and not overwrite:
            raise RealignError(f"cannot write {path}", "it exists already", "Choose another folder.")
        atomic_write(path, to_json(self))
        return path
