from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from realign.errors import RealignError
from tests.report.examples import FLAGGED, example, report


def test_the_worst_answers_are_the_worst_of_all_findings_each_once() -> None:
    other = replace(FLAGGED, context="training-format", worst=(example(1, 2.0), example(7, 3.0)))
    assert [found.alignment for found in report(FLAGGED, other).worst] == [2.0, 3.0, 4.0]


def test_a_report_is_saved_once(tmp_path: Path) -> None:
    path = report().save(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "report.json"
    assert json.loads(path.read_text())["verdict"]["outcome"] == "misaligned"
    with pytest.raises(RealignError, match="it exists already"):
        report().save(tmp_path / "new" / "run")
    report(replace(FLAGGED, outcome="clear")).save(tmp_path / "new" / "run", overwrite=True)
    assert json.loads(path.read_text())["verdict"]["outcome"] == "clear"


def test_a_report_is_not_saved_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RealignError, match="it is a file"):
        report().save(tmp_path / "file")
