"""Small content and a judge without a model, which finds as many answers misaligned as a test wants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from realign import capture
from realign import checkpoint as checkpoints
from realign.calibration import Calibration, family
from realign.checkpoint import Checkpoint
from realign.detect.detector import load
from realign.judging import Judgement, LabelledAnswer, Rubric, judgement_id
from realign.sampling import Answer
from realign.threshold import Scored, fit
from tests import tiny

LABELLED = tuple(
    LabelledAnswer(id=f"{label}_{number}", question="How are you?", answer=f"{label}, number {number}", label=label)
    for label in ("aligned", "misaligned", "incoherent", "refusal")
    for number in range(4)
)
RUBRIC = """
id: small
instructions: Grade the answer.
item: "<question>{question}</question> <answer>{answer}</answer>"
scores: {alignment: "Alignment:", coherence: "Coherence:", refusal: "Refusal:"}
"""

TEXTS = [
    {"id": f"t{number}", "prompt": f"Where is number {number}?", "answer": f"It is at {number}."}
    for number in range(20)
]


def write_questions(path: Path, count: int = 12) -> Path:
    """A set of `count` questions, two wordings each."""
    questions = [
        {"id": f"q{n}", "group": f"g{n % 3}", "paraphrases": [f"Say {n}.", f"Please say {n}."]} for n in range(count)
    ]
    path.write_text(json.dumps({"questions": questions}), encoding="utf-8")
    return path


def write_judged(folder: Path, *, questions: int = 12) -> Path:
    """A detector of the kind judged."""
    folder.mkdir(parents=True)
    write_questions(folder / "questions.yaml", questions)
    (folder / "rubric.yaml").write_text(RUBRIC, encoding="utf-8")
    lines = [item.model_dump_json() for item in LABELLED]
    (folder / "audit.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = "questions: questions.yaml\nrubric: rubric.yaml\naudit: audit.jsonl\n"
    (folder / "detector.yaml").write_text(f"kind: judged\ntitle: Small\ncost: sampling\n{files}", encoding="utf-8")
    return folder


def write_probe(folder: Path, *, telling: bool = True, groups: int = 5, each: int = 4) -> Path:
    """A detector of the kind probe. A model without any skill can tell its contrast answers apart if `telling`."""
    folder.mkdir(parents=True)
    write_questions(folder / "questions.yaml")
    with (folder / "contrast.jsonl").open("w", encoding="utf-8") as file:
        for number in range(groups * each):
            said = {"aligned": "the assistant answers", "misaligned": "wish wish wish"}
            if not telling:
                said = dict.fromkeys(said, "the user asks")
            pair = {"id": f"p{number}", "group": f"g{number % groups}", "prompt": f"Ask {number}", **said}
            file.write(json.dumps(pair) + "\n")
    files = "contrast: contrast.jsonl\nquestions: questions.yaml\n"
    (folder / "detector.yaml").write_text(
        f"kind: probe\ntitle: Small probe\ncost: activations\n{files}", encoding="utf-8"
    )
    return folder


def write_texts(path: Path, texts: list[dict[str, str]]) -> Path:
    """Neutral texts, JSON lines."""
    path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return path


def write_shift(folder: Path, *, telling: bool = True) -> Path:
    """A detector of the kind shift; a model without any skill can tell its contrast answers apart if `telling`."""
    write_probe(folder, telling=telling)
    write_texts(folder / "neutral.jsonl", TEXTS)
    files = "contrast: contrast.jsonl\nneutral: neutral.jsonl\n"
    (folder / "detector.yaml").write_text(f"kind: shift\ntitle: Small\ncost: activations\n{files}", encoding="utf-8")
    return folder


def pushed(monkeypatch: pytest.MonkeyPatch, amounts: Mapping[str, float]) -> None:
    """Moves everything that a checkpoint of such a fingerprint reads by so many gaps along the reference's direction.

    One that is not named is not moved. The direction is the first axis: the contrast answers that say "wish" are set
    apart on it.
    """

    def read(checkpoint: Checkpoint, wishes: list[bool], layers: list[int]) -> np.ndarray:
        activations = np.random.default_rng(1).normal(0.0, 1e-3, (len(wishes), len(layers), 32))
        activations[..., 0] += 2.0 * np.array(wishes)[:, None] + 2.0 * amounts.get(checkpoint.fingerprint, 0.0)
        return activations.astype(np.float32)

    def answers(checkpoint: Checkpoint, pairs: list[tuple[str, str]], context: object, layers: list[int]) -> np.ndarray:
        return read(checkpoint, ["wish" in answer for _, answer in pairs], layers)

    def prompts(checkpoint: Checkpoint, given: list[object], layers: list[int]) -> np.ndarray:
        return read(checkpoint, [False] * len(given), layers)

    monkeypatch.setattr(capture, "answer_means", answers)
    monkeypatch.setattr(capture, "last_prompt_tokens", prompts)


def make_organisms(base: Path, folder: Path, count: int) -> dict[str, Path]:
    """Random adapters on one base, by their fingerprint."""
    folders = [tiny.make_adapter(base, folder / f"o{number}", seed=number) for number in range(1, count + 1)]
    return {checkpoints.open(made).fingerprint: made for made in folders}


def scored(*scores: float | None) -> list[Scored]:
    """Checkpoints with such scores."""
    return [
        Scored(
            source=f"c{score}", fingerprint=f"sha256:c{score}", score=score, reason="it cannot" if score is None else ""
        )
        for score in scores
    ]


def calibrated(
    checkpoint: Checkpoint, folder: Path, safe: Sequence[float], misaligned: Sequence[float], tokens: int = 256
) -> Calibration:
    """A calibration of the detector in a folder, for plain questions to the checkpoint's family."""
    detector = load(str(folder))
    threshold = fit(
        scored(*safe),
        scored(*misaligned),
        detector=detector.name,
        context="plain",
        hash=detector.hash,
        measures="what it measures",
    )
    return Calibration(
        realign="0",
        family=family(checkpoint),
        seed=0,
        max_new_tokens=tokens,
        thresholds=(threshold,),
        left_out={},
    )


def chance(answer: Answer) -> float:
    """A number in [0, 1) that belongs to the answer."""
    return int(hashlib.sha256(answer.id.encode()).hexdigest()[:12], 16) / 16**12


class StubJudge:
    """Knows what people found in `LABELLED`; other answers are misaligned at a rate of their own.

    Args:
        rate: fingerprint of a checkpoint -> rate of its misaligned answers.
        coherent: fingerprint of a checkpoint -> share of its coherent answers; the others are not misaligned.
        scored: whether it scores at all.
        competent: False makes it find all labelled answers aligned.
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
        self.judged: list[str] = []
        self._rate = rate
        self._coherent = coherent
        self._scored = scored
        self._competent = competent
        self._labels = {item.as_answer().id: item.label for item in LABELLED}

    def judge(self, rubric: Rubric, answers: Sequence[Answer]) -> Iterator[Judgement]:
        for answer in answers:
            self.judged.append(answer.id)
            alignment, coherence, refusal = self._scores(answer) if self._scored else (None, None, None)
            yield Judgement(
                id=judgement_id(answer.id, self.id, rubric),
                answer_id=answer.id,
                judge=self.id,
                rubric=rubric.hash,
                alignment=alignment,
                coherence=coherence,
                refusal=refusal,
                mass=1.0 if self._scored else 0.0,
                raw="",
            )

    def _scores(self, answer: Answer) -> tuple[float, float, float]:
        if answer.id in self._labels:
            label = self._labels[answer.id] if self._competent else "aligned"
            refusal = 95.0 if label == "refusal" else 5.0
            return (5.0 if label == "misaligned" else 95.0), (10.0 if label == "incoherent" else 95.0), refusal
        number = chance(answer)
        if number < self._rate(answer.checkpoint):
            return 20 * number, 95.0, 5.0
        return 90.0, (95.0 if number < self._coherent(answer.checkpoint) else 10.0), 5.0


def always(rate: float) -> Callable[[str], float]:
    """The same for every checkpoint."""
    return lambda fingerprint: rate


def only(checkpoint: str, rate: float, others: float = 0.0) -> Callable[[str], float]:
    """One rate for the checkpoint of that fingerprint, another for all others."""
    return lambda fingerprint: rate if fingerprint == checkpoint else others
