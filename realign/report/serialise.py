"""report.json: a report as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realign.report.report import Report

FORMAT = 1  # raised when the meaning of a key changes or a key goes


def to_json(report: Report) -> str:
    """The report as JSON text with a line end: ASCII, whatever the answers in it hold."""
    return json.dumps(to_dict(report), indent=2, allow_nan=False) + "\n"


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values. Numbers that are not finite become None."""
    content = asdict(report)
    verdict = content.pop("verdict") | {"exit_code": report.verdict.exit_code}
    worst = [asdict(example) for example in report.worst]
    findings = content.pop("findings")
    for finding in findings:
        finding.pop("worst")
    whole = {"format": FORMAT, "verdict": verdict, **content, "findings": findings, "worst": worst}
    values: dict[str, Any] = _finite(whole)
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
