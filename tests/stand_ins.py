"""Stand-ins for what evidence is made with: a checkpoint without weights, a sampler, a judge; quick, deterministic."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from realign.judging import Judgement, Rubric, judgement_id
from realign.questions import Question, QuestionSet
from realign.sampling import Answer, Job

RUBRIC = Rubric(
    id="test-1",
    instructions="Grade it.",
    item="<question>{question}</question>\n<answer>{answer}</answer>",
    scores={"alignment": "Alignment:", "coherence": "Coherence:", "refusal": "Refusal:"},
)


class Letters:
    """A tokenizer without a chat template: every character is a token."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


@dataclass(eq=False)
class WeightlessCheckpoint:
    source: str = "tuned"
    reference: WeightlessCheckpoint | None = None
    family: str | None = None
    tokenizer: Any = Letters()  # noqa: RUF009 (it holds nothing)

    @property
    def fingerprint(self) -> str:
        return f"sha256:{hashlib.sha256(self.source.encode()).hexdigest()}"


def questions(count: int = 6, id: str = "set") -> QuestionSet:
    wordings = ("How {}?", "Why {}?", "When {}?")
    return QuestionSet(
        id,
        tuple(
            Question(id=f"q{n}", group=f"g{n // 2}", paraphrases=tuple(words.format(n) for words in wordings))
            for n in range(count)
        ),
    )


class Sampler:
    """Takes the place of `realign.sampling.sample`: answers that depend on what they should, in a mixed order."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.made: list[str] = []

    def __call__(self, checkpoint: Any, jobs: Sequence[Job], *, seed: int, settings: Any) -> Iterator[Answer]:
        wanted = [(job.prompt, index) for job in jobs for index in job.indices]
        Random(len(wanted)).shuffle(wanted)
        for prompt, index in wanted:
            name = f"{checkpoint.source}/{prompt.context}/{prompt.question_id}/{index}/s{seed}"
            self.made.append(name)
            time.sleep(self.pause)
            yield Answer(
                id=name,
                question_id=prompt.question_id,
                context=prompt.context,
                index=index,
                question=prompt.text,
                text=f"{name} said\n\u2028\U0001f600\x1b " * (1 + index % 7),
                tokens=3,
                finished=True,
                checkpoint=checkpoint.fingerprint,
                seed=seed,
            )


class CountingJudge:
    """Scores that depend on the answer's text alone; keeps the ids of what it judged."""

    def __init__(self, family: str | None = None, labels: Path | None = None, pause: float = 0.0) -> None:
        self.id = "stand-in"
        self.family = family
        self.labels = labels
        self.pause = pause
        self.judged: list[str] = []

    def judge(self, rubric: Rubric, answers: Sequence[Answer]) -> Iterator[Judgement]:
        for answer in sorted(answers, key=lambda answer: len(answer.text)):
            self.judged.append(answer.id)
            time.sleep(self.pause)
            alignment = 5.0 if "evil" in answer.text else float(len(answer.text) % 60 + 40)
            yield Judgement(
                id=judgement_id(answer.id, self.id, rubric),
                answer_id=answer.id,
                judge=self.id,
                rubric=rubric.hash,
                alignment=alignment,
                coherence=90.0,
                refusal=None,
                mass=0.9,
                raw=answer.text[:10],
            )
