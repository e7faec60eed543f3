"""What detectors share: answers and their judgements, each made once, kept on disk, resumed after a crash."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from realign import dialogue
from realign.audit import Audit, LabelledAnswer, compare, load_labelled
from realign.errors import RealignError
from realign.judging import Judge, Judgement, judgement_id
from realign.ledger import AFRESH, Cache, Ledger, Record, claim
from realign.sampling import DEFAULT_SETTINGS, Answer, Job, SamplingSettings, sample

if TYPE_CHECKING:
    from realign.checkpoint import Checkpoint
    from realign.dialogue import Prompt
    from realign.questions import QuestionSet
    from realign.rubric import Rubric

# Part of every cache key: raise it when what is sampled or judged under the same names changes.
_CACHE_VERSION = 1

# What names an answer within a run: checkpoint, context, question, index.
_Name: TypeAlias = tuple[str, str, str, int]
_Kept = TypeVar("_Kept", Answer, Judgement)


@dataclass(frozen=True)
class Cost:
    """What was made, not found in the run folder or the cache.

    Attributes:
        answers: answers sampled.
        judgements: answers judged.
        tokens: tokens sampled.
        seconds: time that it took.
        forward_passes: those in which texts were only read, in batches.
        tokens_read: tokens of these texts.
    """

    answers: int = 0
    judgements: int = 0
    tokens: int = 0
    seconds: float = 0.0
    forward_passes: int = 0
    tokens_read: int = 0


class Evidence:
    """Answers and judgements of one run.

    Everything is appended to the run folder as it is made (answers.jsonl, judgements.jsonl), so that a run that was
    killed goes on where it stopped: what it makes then is what it would have made. What the reference says and how it
    was judged is also kept in the user's cache, for the next checkpoint on the same reference.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        judge: Judge | None,
        seed: int,
        run: Path | None,
        settings: SamplingSettings = DEFAULT_SETTINGS,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """
        Args:
            judge: what grades the answers; None when there is none, then `judgements` and `audit` fail.
            run: the run folder; None keeps everything in memory.
            on_progress: called with what is being made, how many are done and how many were asked for.

        Raises:
            RealignError: the run folder holds evidence on another checkpoint, seed or settings, or a damaged file.
        """
        self.checkpoint = checkpoint
        self.judge = judge
        self.seed = seed
        self.settings = settings
        self._on_progress = on_progress or (lambda what, done, total: None)
        if run is not None:
            reference = checkpoint.reference and checkpoint.reference.fingerprint
            claim(run, {"checkpoint": checkpoint.fingerprint, "reference": reference, **self._settings()})
        self._answer_ledger = Ledger(run and run / "answers.jsonl")
        self._judgement_ledger = Ledger(run and run / "judgements.jsonl")
        answers = [_restore(Answer, record) for record in self._answer_ledger]
        self._answers: dict[_Name, Answer] = {_name(answer): answer for answer in answers}
        self._judgements = {record["id"]: _restore(Judgement, record) for record in self._judgement_ledger}
        self._caches: dict[str, Cache] = {}
        self._cost = Cost()
        self._work: Literal["making", "reading"] | None = None

    @property
    def cost(self) -> Cost:
        """What this object has made so far, and what was read in `counted` blocks."""
        return self._cost

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Adds to the cost what the block takes: all its time, and what the models read in it.

        Whatever an instrument reads with the checkpoint or its reference is counted where it enters the model, so that
        no instrument has to keep books. Answers and judgements made in the block are counted as such, not as reading.
        """
        models = {}
        for source in (self.checkpoint, self.checkpoint.reference):
            if source is not None:
                with source.active() as model:  # the same one for an adapter and its base
                    models[id(model)] = model
        with ExitStack() as hooks, self._at("reading"):
            for model in models.values():
                hooks.callback(model.register_forward_pre_hook(self._count, with_kwargs=True).remove)
            yield

    def _count(self, model: object, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._work == "reading":
            cost = self._cost
            read = cost.tokens_read + _tokens(given, named)
            self._cost = replace(cost, forward_passes=cost.forward_passes + 1, tokens_read=read)

    def answers(
        self, questions: QuestionSet, context: str, indices: Sequence[int], *, reference: bool = False
    ) -> list[Answer]:
        """One answer to each question for each index, in the order of indices, then questions; made where missing.

        Raises:
            RealignError: there is no reference or no such context, or the run folder has answers to other wordings.
        """
        source = self._source(reference)
        put = dialogue.context(context)
        wanted: dict[_Name, Prompt] = {}
        for index in indices:
            for prompt in questions.prompts(source.tokenizer, put, index, seed=self.seed):
                wanted[source.fingerprint, context, prompt.question_id, index] = prompt
        cache = self._answer_cache(source, questions, context) if reference else None
        self._recall(wanted, cache)
        self._sample(source, {name: wanted[name] for name in wanted if name not in self._answers}, cache, len(wanted))
        return [self._answers[name] for name in wanted]

    def judgements(self, answers: Sequence[Answer], rubric: Rubric) -> list[Judgement]:
        """The judge's judgement of each answer, in the answers' order; made where missing.

        Raises:
            RealignError: there is no judge.
        """
        judge = self._known_judge()
        names = {answer.id: judgement_id(answer.id, judge.id, rubric) for answer in answers}
        missing: dict[str, Answer] = {}
        for answer in answers:
            name = names[answer.id]
            if name not in self._judgements and not self._recall_judgement(name, answer, judge, rubric):
                missing[answer.id] = answer
        with self._at("making"):
            done = len(names) - len(missing)
            for judgement in judge.judge(rubric, list(missing.values())):
                self._keep_judgement(judgement)
                if cache := self._judgement_cache(missing[judgement.answer_id], judge, rubric):
                    cache.add(asdict(judgement) | {"id": _digest(missing[judgement.answer_id])})
                self._cost = replace(self._cost, judgements=self._cost.judgements + 1)
                self._on_progress("judgements", done := done + 1, len(names))
        return [self._judgements[names[answer.id]] for answer in answers]

    def audit(self, rubric: Rubric, labelled: Sequence[LabelledAnswer]) -> Audit:
        """How the judge does on labelled answers; kept like any judgements.

        A judge that brings labelled answers of the checkpoint's own family is audited by these, any other by
        `labelled`: what it gets right on one family says little about another.

        Raises:
            RealignError: there is no judge, or the labelled answers are not of both kinds.
        """
        judge = self._known_judge()
        if judge.labels is not None and judge.family is not None and judge.family == self.checkpoint.family:
            labelled = load_labelled(judge.labels)
        return compare(labelled, self.judgements([item.as_answer() for item in labelled], rubric))

    def _known_judge(self) -> Judge:
        if self.judge is None:
            raise RealignError("cannot judge answers", "there is no judge", "Name one with --judge.")
        return self.judge

    def _source(self, reference: bool) -> Checkpoint:
        source = self.checkpoint.reference if reference else self.checkpoint
        if source is None:
            raise RealignError(
                "cannot compare with a reference", f"{self.checkpoint.source} has none", "Name one with --reference."
            )
        return source

    def _recall(self, wanted: Mapping[_Name, Prompt], cache: Cache | None) -> None:
        """Takes answers from the cache; checks that those that are there answer the questions as they are worded."""
        for record in cache or ():
            answer = _restore(Answer, record)
            name = _name(answer)
            if name in wanted and name not in self._answers and answer.question == wanted[name].text:
                self._keep(answer)
        for name, prompt in wanted.items():
            if name in self._answers and self._answers[name].question != prompt.text:
                raise RealignError(
                    f'the run has an answer to question "{prompt.question_id}" in another wording',
                    "a question was changed, or two question sets have one id for different questions",
                    "Use a new run folder (or --overwrite), or rename the question.",
                )

    def _sample(self, source: Checkpoint, missing: Mapping[_Name, Prompt], cache: Cache | None, total: int) -> None:
        indices: dict[Prompt, list[int]] = {}
        for name, prompt in missing.items():
            indices.setdefault(prompt, []).append(name[-1])
        if not indices:
            return
        jobs = [Job(prompt, tuple(found)) for prompt, found in indices.items()]
        what = "answers" if cache is None else "reference answers"
        with self._at("making"):
            done = total - len(missing)
            for answer in sample(source, jobs, seed=self.seed, settings=self.settings):
                self._keep(answer)
                if cache is not None:
                    cache.add(asdict(answer))
                cost = self._cost
                self._cost = replace(cost, answers=cost.answers + 1, tokens=cost.tokens + answer.tokens)
                self._on_progress(what, done := done + 1, total)

    def _keep(self, answer: Answer) -> None:
        self._answers[_name(answer)] = answer
        self._answer_ledger.add(asdict(answer))

    def _keep_judgement(self, judgement: Judgement) -> None:
        self._judgements[judgement.id] = judgement
        self._judgement_ledger.add(asdict(judgement))

    def _answer_cache(self, source: Checkpoint, questions: QuestionSet, context: str) -> Cache:
        settings = self._settings()
        return self._cache(
            "answers", checkpoint=source.fingerprint, questions=questions.hash, context=context, **settings
        )

    def _judgement_cache(self, answer: Answer, judge: Judge, rubric: Rubric) -> Cache | None:
        """Where judgements of such answers outlive the run: those of the reference and of labelled answers do."""
        reference = self.checkpoint.reference
        if answer.checkpoint and (reference is None or answer.checkpoint != reference.fingerprint):
            return None
        made = {"checkpoint": answer.checkpoint, "seed": answer.seed}
        return self._cache("judgements", judge=judge.id, rubric=rubric.hash, **made)

    def _recall_judgement(self, name: str, answer: Answer, judge: Judge, rubric: Rubric) -> bool:
        cache = self._judgement_cache(answer, judge, rubric)
        record = cache and cache.get(_digest(answer))
        if not record:
            return False
        self._keep_judgement(_restore(Judgement, {**record, "id": name, "answer_id": answer.id}))
        return True

    def _cache(self, kind: str, **key: object) -> Cache:
        name = json.dumps([kind, key], sort_keys=True)
        if name not in self._caches:
            self._caches[name] = Cache(kind, {"version": _CACHE_VERSION, **key})
        return self._caches[name]

    def _settings(self) -> dict[str, object]:
        """What answers depend on besides checkpoint and prompt (the token budget they do not depend on)."""
        chosen = self.settings
        return {"seed": self.seed, "max_new_tokens": chosen.max_new_tokens, "temperature": chosen.temperature}

    @contextmanager
    def _at(self, work: Literal["making", "reading"]) -> Iterator[None]:
        """What the block does; its time is added to the cost, unless it is that of a block around it already."""
        outer, start = self._work, time.monotonic()
        self._work = work
        try:
            yield
        finally:
            self._work = outer
            if outer is None:
                self._cost = replace(self._cost, seconds=self._cost.seconds + time.monotonic() - start)


def _tokens(given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """How many tokens a model is called on, padding left out."""
    texts = next(one for one in (named.get("input_ids"), named.get("inputs_embeds"), *given) if one is not None)
    rows, columns = texts.shape[:2]
    mask = named.get("attention_mask")
    # A mask may be longer than the call: what was read before is in the cache.
    return int(mask[:, -columns:].sum()) if mask is not None and mask.ndim == 2 else rows * columns


def _name(answer: Answer) -> _Name:
    return answer.checkpoint, answer.context, answer.question_id, answer.index


def _digest(answer: Answer) -> str:
    """Names what a judge reads of an answer."""
    return hashlib.sha256(json.dumps([answer.question, answer.text]).encode()).hexdigest()


def _restore(kind: type[_Kept], record: Record) -> _Kept:
    try:
        return kind(**record)
    except TypeError as error:
        raise RealignError(f"cannot read a kept {kind.__name__.lower()}", str(error), AFRESH) from error
