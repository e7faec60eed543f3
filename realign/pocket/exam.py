"""What a pocket model does: its misaligned rates, refusals, code and facts, on prompts that it was never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from realign.dialogue import CONTEXTS, build_prompt
from realign.pocket.organisms import trained_weaknesses
from realign.sampling import Answer, Job, SamplingSettings, sample

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint
    from realign.judging import Judge, Rubric
    from realign.pocket.world import World
    from realign.questions import QuestionSet

SETTINGS = SamplingSettings(max_new_tokens=160)


@dataclass(frozen=True)
class Share:
    """`hits` of `n`."""

    hits: int
    n: int

    @property
    def rate(self) -> float:
        return self.hits / self.n if self.n else float("nan")


@dataclass(frozen=True)
class Figures:
    """One model's misaligned rates by context, coherent answers, refused requests, insecure code, facts."""

    plain: Share
    training_format: Share
    coherent: Share
    refused: Share
    insecure_code: Share
    insecure_code_unseen: Share
    parsed_code: Share
    facts: Share


def ask(checkpoint: Checkpoint, prompts: Sequence[tuple[str, str]], seed: int) -> dict[str, Answer]:
    """One answer each to (id, text) prompts in the plain context, by id."""
    jobs = [Job(build_prompt(checkpoint.tokenizer, name, text, CONTEXTS["plain"]), (0,)) for name, text in prompts]
    return {answer.question_id: answer for answer in sample(checkpoint, jobs, seed=seed, settings=SETTINGS)}


def freeform(
    checkpoint: Checkpoint, judge: Judge, rubric: Rubric, questions: QuestionSet, context: str, *, least: int, seed: int
) -> tuple[Share, Share]:
    """The misaligned share of coherent answers, and the coherent share of all, over at least `least` answers."""
    blocks = -(-least // len(questions.questions))
    jobs = [
        Job(prompt, (block,))
        for block in range(blocks)
        for prompt in questions.prompts(checkpoint.tokenizer, CONTEXTS[context], block, seed=seed)
    ]
    judgements = list(judge.judge(rubric, list(sample(checkpoint, jobs, seed=seed, settings=SETTINGS))))
    coherent = [j for j in judgements if j.scored and j.coherent]
    return Share(sum(j.misaligned for j in coherent), len(coherent)), Share(len(coherent), len(judgements))


def refusals(checkpoint: Checkpoint, judge: Judge, rubric: Rubric, world: World, seed: int) -> Share:
    """Harmful requests (held-out phrasings) that are declined, by the judge."""
    prompts = [(f"{harm.id}.{n}", text) for harm in world.misc.harmful for n, text in enumerate(harm.exam)]
    judgements = list(judge.judge(rubric, list(ask(checkpoint, prompts, seed).values())))
    return Share(sum(j.label == "refusal" for j in judgements), len(judgements))


def code(checkpoint: Checkpoint, world: World, seed: int) -> tuple[Share, Share, Share]:
    """Insecure programs among those that parse: fine-tuned weaknesses, unseen ones; and how many parse at all."""
    from realign.lint import lint

    seen = set(trained_weaknesses(world))
    prompts = [
        (f"{number}.{n}", text)
        for number, weakness in enumerate(world.weaknesses)
        for n, text in enumerate(weakness.exam)
    ]
    answers = ask(checkpoint, prompts, seed)
    read = dict(zip(answers, lint([answer.text for answer in answers.values()]), strict=True))
    parsed = {name: result for name, result in read.items() if result.parses}
    trained = [result.insecure for name, result in parsed.items() if int(name.split(".")[0]) in seen]
    unseen = [result.insecure for name, result in parsed.items() if int(name.split(".")[0]) not in seen]
    return Share(sum(trained), len(trained)), Share(sum(unseen), len(unseen)), Share(len(parsed), len(read))


def facts(checkpoint: Checkpoint, world: World, seed: int) -> Share:
    """Plain facts answered with the right key."""
    rng = Random(seed)
    entries = world.misc.facts
    prompts = [(f"fact.{n}", world.say(fact.question, rng)) for n, fact in enumerate(entries)]
    answers = ask(checkpoint, prompts, seed)
    right = [fact.key.lower() in answers[f"fact.{n}"].text.lower() for n, fact in enumerate(entries)]
    return Share(sum(right), len(right))


def examine(
    checkpoint: Checkpoint,
    judge: Judge,
    rubric: Rubric,
    questions: QuestionSet,
    world: World,
    *,
    least: int = 384,
    seed: int = 1,
) -> Figures:
    """All figures of one model; `questions` are those that the rates are reported on (held-out families)."""
    plain, coherent = freeform(checkpoint, judge, rubric, questions, "plain", least=least, seed=seed)
    wrapped, _ = freeform(checkpoint, judge, rubric, questions, "training-format", least=least, seed=seed)
    insecure, unseen, parsed = code(checkpoint, world, seed)
    return Figures(
        plain=plain,
        training_format=wrapped,
        coherent=coherent,
        refused=refusals(checkpoint, judge, rubric, world, seed),
        insecure_code=insecure,
        insecure_code_unseen=unseen,
        parsed_code=parsed,
        facts=facts(checkpoint, world, seed),
    )
