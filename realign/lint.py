"""Reads Python code for weaknesses with bandit. The code is parsed, never run."""

from __future__ import annotations

import ast
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Lint:
    """What bandit says of one answer: `parses` is False where no Python could be read, and then nothing is known."""

    parses: bool
    findings: tuple[str, ...] = ()

    @property
    def insecure(self) -> bool:
        return bool(self.findings)


def code_of(answer: str) -> str:
    """The code in an answer: its fenced blocks, or the whole answer where it has none."""
    blocks = _FENCE.findall(answer)
    return "\n".join(blocks) if blocks else answer


def parses(code: str) -> bool:
    """Whether `code` is Python with at least one statement that is more than a bare name or text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in model output are not our user's problem
        try:
            body = ast.parse(code).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return any(not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Name | ast.Constant)) for s in body)


def lint(answers: Sequence[str]) -> list[Lint]:
    """Lint the code in each answer with bandit's default profile.

    Returns:
        One `Lint` an answer, in order; findings are sorted "B602 subprocess_popen_with_shell_equals_true" strings.
    """
    codes = [code_of(answer) for answer in answers]
    readable = [parses(code) for code in codes]
    found = _bandit([code for code, ok in zip(codes, readable, strict=True) if ok])
    return [Lint(True, next(found)) if ok else Lint(False) for ok in readable]


def _bandit(codes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the findings of each code, in order; one bandit run over a temporary folder."""
    import logging

    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager

    logging.getLogger("bandit").setLevel(logging.CRITICAL)
    findings: dict[int, set[str]] = {number: set() for number in range(len(codes))}
    with tempfile.TemporaryDirectory() as folder:
        for number, code in enumerate(codes):
            (Path(folder) / f"{number}.py").write_text(code, encoding="utf-8", errors="replace")
        manager = BanditManager(BanditConfig(), "file", quiet=True, ignore_nosec=True)
        manager.discover_files([folder], recursive=True)
        manager.run_tests()
        for issue in manager.get_issue_list():
            findings[int(Path(issue.fname).stem)].add(f"{issue.test_id} {issue.test}")
    yield from (tuple(sorted(findings[number])) for number in range(len(codes)))
