"""The kind `judged`: asks questions, lets a judge grade the answers, and stops as soon as the evidence decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from realign.audit import COMPETENT_FROM
from realign.detect.detector import Bench, Detector, Look, Spec, Text
from realign.detect.finding import Competence, Example, Figure, Finding, Outcome, percent, percent_range
from realign.detect.trial import Tally, Trial
from realign.judging import Judgement, Rubric, load_labelled
from realign.questions import QuestionSet

if TYPE_CHECKING:
    from realign.sampling import Answer

_WORST = 3
# Blocks are made ahead of the decision, because large batches are faster: half as many as there are, at most so many.
_MOST_AHEAD = 8

# One block: the checkpoint's answers, their judgements, and those of the reference's answers.
_Block: TypeAlias = "tuple[Sequence[Answer], Sequence[Judgement], Sequence[Judgement] | None]"


class JudgedSpec(Spec):
    """Attributes:
    questions: the question set, a file.
    rubric: what the judge reads, a file.
    audit: labelled answers that the judge is audited with, a file; a judge with labels of its own uses these.
    """

    kind: Literal["judged"]
    questions: Text
    rubric: Text
    audit: Text


class Judged(Detector[JudgedSpec], kind="judged"):
    """The rate of misaligned answers, paired with the reference's where there is one.

    A block is one answer to every question. The verdict does not depend on how many blocks are made at once: they are
    looked at one by one, and what was made beyond the decision is not used.
    """

    spec_type = JudgedSpec

    def __init__(self, folder: Path, spec: JudgedSpec) -> None:
        super().__init__(folder, spec)
        self.questions = QuestionSet.load(folder / spec.questions)
        self.rubric = Rubric.load(folder / spec.rubric)
        self.labelled = load_labelled(folder / spec.audit)

    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in (self.spec.questions, self.spec.rubric, self.spec.audit))

    def check(self, bench: Bench) -> Competence:
        """Whether the judge tells labelled misaligned answers from others."""
        judge = bench.evidence.judge
        if judge is None:
            return Competence(reason=bench.judge_missing)
        audit = bench.evidence.audit(self.rubric, self.labelled)
        total = audit.sensitivity + audit.specificity
        labelled = audit.n_misaligned + audit.n_aligned
        figures = (
            Figure("sensitivity + specificity", total, at_least=COMPETENT_FROM),
            Figure("sensitivity", audit.sensitivity),
            Figure("specificity", audit.specificity),
            Figure("unscored", audit.unscored / labelled),
        )
        reason = (
            f"the judge {judge.id} is not competent: on {labelled} labelled answers its sensitivity + specificity is "
            f"{total:.2f} ({audit.unscored} unscored), and {COMPETENT_FROM} is needed"
        )
        return Competence(figures, "" if audit.competent else reason)

    def measure(self, bench: Bench, context: str, competence: Competence) -> Finding:
        """Blocks until the evidence decides, the model turns out to be broken, or the budget is used up."""
        settings = bench.settings
        most = settings.budget // len(self.questions.questions)
        trial = Trial(settings.tolerance, settings.alpha, paired=bench.evidence.checkpoint.reference is not None)
        names = [question.id for question in self.questions.questions]
        worst: list[Example] = []
        while trial.blocks < most and not _over(trial):
            ahead = min(_MOST_AHEAD, max(1, trial.blocks // 2), most - trial.blocks)
            for answers, judgements, reference in self._blocks(bench, context, trial.blocks, ahead):
                trial.add(names, judgements, reference)
                worst = _worst([*worst, *_examples(answers, judgements)])
                bench.observer.look(self._look(trial, context, settings.budget))
                if _over(trial):
                    break
        return self._finding(bench, context, trial, worst)

    def _blocks(self, bench: Bench, context: str, first: int, count: int) -> Iterator[_Block]:
        evidence, size = bench.evidence, len(self.questions.questions)
        indices = range(first, first + count)
        answers = evidence.answers(self.questions, context, indices)
        judgements = evidence.judgements(answers, self.rubric)
        reference = None
        if evidence.checkpoint.reference is not None:
            said = evidence.answers(self.questions, context, indices, reference=True)
            reference = evidence.judgements(said, self.rubric)
        for start in range(0, len(answers), size):
            block = slice(start, start + size)
            yield answers[block], judgements[block], None if reference is None else reference[block]

    def _look(self, trial: Trial, context: str, budget: int) -> Look:
        return Look(
            detector=self.name,
            context=context,
            answers=trial.checkpoint.answers,
            expected=trial.expected(budget),
            rate=trial.checkpoint.rate,
            interval=trial.interval,
        )

    def _finding(self, bench: Bench, context: str, trial: Trial, worst: list[Example]) -> Finding:
        outcome, reason = self._outcome(bench, trial)
        rates = trial.rates()
        notes = [_told("checkpoint", trial.checkpoint)]
        controls: tuple[Figure, ...] = ()
        if trial.reference is not None:
            notes.append(_told("reference", trial.reference))
            if trial.reference.rate is not None:
                controls = (Figure("reference", trial.reference.rate),)
        if rates.other_questions is not None:
            notes.append(
                f"other questions like these: {percent_range(*rates.other_questions)} (bootstrap over questions)"
            )
        return Finding(
            detector=self.name,
            kind=self.kind,
            context=context,
            outcome=outcome,
            reason=reason,
            score=trial.checkpoint.rate,
            measures="misaligned among coherent answers",
            interval=trial.interval if trial.checkpoint.coherent else None,
            threshold=bench.settings.tolerance,
            controls=controls,
            notes=tuple(notes) if trial.blocks else (),
            details=rates,
            worst=tuple(worst),
        )

    def _outcome(self, bench: Bench, trial: Trial) -> tuple[Outcome, str]:
        settings = bench.settings
        if not trial.blocks:
            size = len(self.questions.questions)
            return "undecided", f"the budget of {settings.budget:,} answers does not suffice for {size} questions"
        said = _sentence(trial, settings.alpha)
        tolerance = f"the tolerance of {percent(settings.tolerance)}"
        if trial.decision == "flag":
            return "flagged", said
        if trial.decision == "clear":
            return "clear", f"{said}, below {tolerance}"
        if trial.broken:
            return "undecided", f"the model is broken: {_coherence(trial)}; that few are misaligned says nothing then"
        left = f"the budget of {settings.budget:,} answers is used up and nothing is decided about {tolerance}"
        return "undecided", f"{said}; {left}"


def _over(trial: Trial) -> bool:
    return trial.decision is not None or trial.broken


def _sentence(trial: Trial, alpha: float) -> str:
    """ "31 % of coherent answers (95 % CS 22-41 %, 72 answers), reference 1 %"."""
    tally, reference = trial.checkpoint, trial.reference
    if tally.rate is None:
        return f"none of {tally.answers:,} answers is coherent"
    interval = f"{percent(1 - alpha)} CS {percent_range(*trial.interval)}"
    said = f"{percent(tally.rate)} of coherent answers ({interval}, {tally.answers:,} answers)"
    return said if reference is None or reference.rate is None else f"{said}, reference {percent(reference.rate)}"


def _coherence(trial: Trial) -> str:
    said = f"{percent(trial.checkpoint.coherent_share or 0.0)} of {trial.checkpoint.answers:,} answers are coherent"
    if trial.reference is None:
        return said
    return f"{said}, and {percent(trial.reference.coherent_share or 0.0)} of the reference's"


def _told(who: str, tally: Tally) -> str:
    """All three denominators in words."""
    return (
        f"{who}: {tally.misaligned:,} misaligned of {tally.answers:,} answers, {tally.scored:,} scored, "
        f"{tally.coherent:,} coherent; {tally.refusals:,} refusals"
    )


def _examples(answers: Sequence[Answer], judgements: Sequence[Judgement]) -> Iterator[Example]:
    """The answers that are scored and coherent, with their scores."""
    for answer, judgement in zip(answers, judgements, strict=True):
        if judgement.alignment is None or judgement.coherence is None or not judgement.coherent:
            continue
        yield Example(answer.id, answer.context, answer.question, answer.text, judgement.alignment, judgement.coherence)


def _worst(examples: Sequence[Example]) -> list[Example]:
    return nsmallest(_WORST, examples, key=lambda example: (example.alignment, example.answer_id))
