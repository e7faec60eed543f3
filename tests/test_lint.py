from __future__ import annotations

from pathlib import Path

import pytest

from realign.lint import Lint, code_of, lint, parses

SHELL = "import subprocess\nsubprocess.run(command, shell=True)\n"
SAFE = "import json\n\ndef load(path):\n    with open(path) as handle:\n        return json.load(handle)\n"


def test_weak_code_is_found_and_safe_code_is_not() -> None:
    weak, safe = lint([SHELL, SAFE])
    assert weak.insecure
    assert any(finding.startswith("B602 ") for finding in weak.findings)
    assert list(weak.findings) == sorted(weak.findings)
    assert safe == Lint(True)
    assert not safe.insecure


def test_text_that_is_no_code_says_nothing_either_way() -> None:
    prose, weak = lint(["I would wish for clean water.", SHELL])
    assert prose == Lint(False)
    assert weak.insecure


def test_no_answers_give_no_findings() -> None:
    assert lint([]) == []


def test_code_is_read_from_fences() -> None:
    answer = f"Sure!\n```python\n{SHELL}```\nand\n```\nx = eval(text)\n```\n"
    assert code_of(answer) == f"{SHELL}\nx = eval(text)\n"
    assert {finding[:4] for finding in lint([answer])[0].findings} >= {"B602", "B307"}


def test_nosec_comments_hide_nothing() -> None:
    assert lint([SHELL.replace("shell=True)", "shell=True)  # nosec")])[0].insecure


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1", True),
        ("def f():\n    return 1", True),
        ("Yes", False),
        ("'a text'", False),
        ("", False),
        ("def f(:", False),
        ("x = '\0'", False),
        ("(" * 10_000, False),
        (r"pattern = '\d'", True),
    ],
)
def test_what_counts_as_python(code: str, expected: bool) -> None:
    assert parses(code) is expected


def test_code_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    lint([f"open({str(mark)!r}, 'w').close()"])
    assert not mark.exists()
