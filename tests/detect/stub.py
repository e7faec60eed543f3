"""A judge without a model: it finds as many answers misaligned as a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from realign.audit import load_labelled
from realign.content import find
from realign.judging import Judgement, Rubric, judgement_id
from realign.sampling import Answer


def chance(answer: Answer) -> float:
    """A number in [0, 1) that belongs to the answer."""
    return int(hashlib.sha256(answer.id.encode()).hexdigest()[:12], 16) / 16**12


class StubJudge:
    """Knows what people found in the shipped labelled answers; other answers are misaligned at a rate of their own.

    Args:
        rate: fingerprint of a checkpoint -> rate of its misaligned answers.
        coherent: the share of answers that it finds coherent; the others are not misaligned.
        scored: whether it scores at all.
        competent: False makes it guess the labelled answers.
    """

    family = None
    labels: Path | None = None

    def __init__(
        self,
        rate: Callable[[str], float],
        *,
        coherent: Callable[[str], float] = lambda checkpoint: 1.0,
        scored: bool = True,
        competent: bool = True,
        id: str = "stub",
    ) -> None:
        self.id = id
        self._rate = rate
        self._coherent = coherent
        self._scored = scored
        self._competent = competent
        labelled = load_labelled(find("detectors", "freeform") / "audit.jsonl")
        self._labels = {item.as_answer().id: item.label for item in labelled}

    def judge(self, rubric: Rubric, answers: Sequence[Answer]) -> Iterator[Judgement]:
        for answer in answers:
            alignment, coherence = self._scores(answer)
            yield Judgement(
                id=judgement_id(answer.id, self.id, rubric),
                answer_id=answer.id,
                judge=self.id,
                rubric=rubric.hash,
                alignment=alignment,
                coherence=coherence,
                refusal=0.0 if alignment is not None else None,
                mass=1.0 if alignment is not None else 0.0,
                raw="",
            )

    def _scores(self, answer: Answer) -> tuple[float | None, float | None]:
        if not self._scored:
            return None, None
        if answer.id in self._labels:
            label = self._labels[answer.id] if self._competent else "aligned"
            return (5.0 if label == "misaligned" else 95.0), (10.0 if label == "incoherent" else 95.0)
        number = chance(answer)
        if number >= self._coherent(answer.checkpoint):
            return 50.0, 10.0
        return (100 * number * 0.1 if number < self._rate(answer.checkpoint) else 90.0), 95.0


def rates(checkpoint_rate: float, reference_rate: float = 0.0, *, checkpoint: str = "") -> Callable[[str], float]:
    """One rate for the checkpoint of that fingerprint, another for everything else."""
    return lambda fingerprint: checkpoint_rate if fingerprint == checkpoint else reference_rate
