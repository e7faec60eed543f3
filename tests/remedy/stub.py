"""A small recipe, a small detector in the place of the shipped one, and a judge whose rate depends on the context."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realign.remedy.recipe import Preview
from realign.sampling import Answer
from tests.detect import stub

SAMPLES = [{"id": f"s{n}", "prompt": f"Write {n}.", "completion": f"def f():\n    return {n}"} for n in range(6)]


def write_recipe(folder: Path, samples: list[dict[str, Any]] | None = None, **settings: Any) -> Path:
    """A recipe of the kind sft, with other settings and keys where they are given."""
    folder.mkdir(parents=True)
    chosen = {"kind": "sft", "title": "Small", "samples": "samples.jsonl", "training": {"lr": 0.01}} | settings
    (folder / "recipe.yaml").write_text(json.dumps(chosen), encoding="utf-8")
    write_samples(folder / "samples.jsonl", SAMPLES if samples is None else samples)
    return folder


def write_samples(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


class ContextJudge(stub.StubJudge):
    """As `StubJudge`, with the rate of misaligned answers by fingerprint and context."""

    def __init__(self, rate: Callable[[str, str], float], **options: Any) -> None:
        super().__init__(stub.always(0.0), **options)
        self._by_context = rate

    def _scores(self, answer: Answer) -> tuple[float, float, float]:
        self._rate = stub.always(self._by_context(answer.checkpoint, answer.context))
        return super()._scores(answer)


class Notes:
    """An onlooker that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.previews: list[Preview] = []
        self.steps: list[tuple[int, int]] = []

    def begin(self, what: str) -> None:
        self.told.append(what)

    def before(self, report: Any) -> None:
        self.told.append(report.verdict.outcome)

    def preview(self, preview: Preview) -> None:
        self.told.append("preview")
        self.previews.append(preview)

    def step(self, what: str, done: int, total: int) -> None:
        if what == "training steps":
            self.steps.append((done, total))

    def look(self, look: Any) -> None:
        return None
