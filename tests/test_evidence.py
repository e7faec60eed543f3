from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from realign import capture
from realign import checkpoint as checkpoints
from realign import evidence as evidence_module
from realign.checkpoint import Checkpoint
from realign.errors import RealignError
from realign.evidence import Evidence
from realign.judging import LabelledAnswer
from realign.sampling import SamplingSettings
from tests import interrupted
from tests.stand_ins import RUBRIC, CountingJudge, Sampler, WeightlessCheckpoint, questions

LONGER, SHORTER = [5, 6, 7], [8, 9]
FILES = ("answers.jsonl", "judgements.jsonl")


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    made = Sampler()
    monkeypatch.setattr(evidence_module, "sample", made)
    return made


def gather(run: Path | None = None, *, checkpoint: Any = None, judge: Any = None, **options: Any) -> Evidence:
    if checkpoint is None:
        checkpoint = WeightlessCheckpoint(reference=WeightlessCheckpoint("base"))
    return Evidence(checkpoint, judge=judge or CountingJudge(), run=run, **{"seed": 1, **options})


def test_answers_come_in_the_order_asked_for_and_are_made_once(sampler: Sampler) -> None:
    evidence = gather()
    answers = evidence.answers(questions(3), "plain", [1, 0])
    assert [(answer.index, answer.question_id) for answer in answers] == [
        (1, "q0"), (1, "q1"), (1, "q2"), (0, "q0"), (0, "q1"), (0, "q2"),
    ]  # fmt: skip
    assert [answer.question.split()[-1] for answer in answers[:3]] == ["0?", "1?", "2?"]
    assert evidence.answers(questions(3), "plain", [0]) == answers[3:]
    assert len(evidence.answers(questions(3), "plain", range(4))) == 12
    assert len(sampler.made) == len(set(sampler.made)) == 12
    other = evidence.answers(questions(3), "training-format", [0])
    assert "Python function" in other[0].question
    assert len(sampler.made) == 15


def test_judgements_come_in_the_answers_order_and_are_made_once(sampler: Sampler) -> None:
    judge = CountingJudge()
    evidence = gather(judge=judge)
    answers = evidence.answers(questions(4), "plain", range(3))
    found = evidence.judgements(answers, RUBRIC)
    assert [judgement.answer_id for judgement in found] == [answer.id for answer in answers]
    assert evidence.judgements(answers[::-1], RUBRIC) == found[::-1]
    assert evidence.judgements([*answers, *answers], RUBRIC) == found * 2
    assert len(judge.judged) == 12
    evidence.judgements(answers, RUBRIC.model_copy(update={"instructions": "Grade it well."}))
    assert len(judge.judged) == 24


def test_a_second_run_in_the_folder_makes_nothing_again(sampler: Sampler, tmp_path: Path) -> None:
    first = gather(tmp_path / "run")
    answers = first.answers(questions(), "plain", range(2))
    judgements = first.judgements(answers, RUBRIC)
    judge = CountingJudge()
    second = gather(tmp_path / "run", judge=judge)
    assert second.answers(questions(), "plain", range(2)) == answers
    assert second.judgements(answers, RUBRIC) == judgements
    assert (len(sampler.made), judge.judged) == (12, [])
    assert (second.cost.answers, second.cost.judgements, second.cost.tokens) == (0, 0, 0)
    assert (first.cost.answers, first.cost.judgements, first.cost.tokens) == (12, 12, 36)
    assert first.cost.seconds > 0


def test_a_run_torn_anywhere_is_mended_exactly(sampler: Sampler, tmp_path: Path) -> None:
    def everything(run: Path) -> None:
        evidence = gather(run)
        evidence.judgements(evidence.answers(questions(), "plain", range(2)), RUBRIC)

    everything(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in FILES}
    rng = Random(0)
    for _ in range(25):
        for name in FILES:
            (tmp_path / name).write_bytes(whole[name][: rng.randrange(len(whole[name]))])
        everything(tmp_path)
        for name in FILES:
            assert sorted((tmp_path / name).read_bytes().splitlines()) == sorted(whole[name].splitlines())


def test_a_run_killed_at_twenty_random_points_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "sample", Sampler())
    monkeypatch.setenv("REALIGN_CACHE", str(tmp_path / "cache"))
    interrupted.gather(tmp_path / "whole")
    monkeypatch.setenv("REALIGN_CACHE", str(tmp_path / "other cache"))
    run = tmp_path / "killed"
    size = sum((tmp_path / "whole" / name).stat().st_size for name in FILES)
    points = sorted(Random(1).sample(range(1, size * 9 // 10), 20))
    killed = sum(kill_at(run, point) for point in points)
    assert killed == 20
    interrupted.gather(run)
    for name in FILES:
        lines = (run / name).read_bytes().splitlines()
        assert len(lines) == len(set(lines)) == 2 * 6 * interrupted.BLOCKS
        assert sorted(lines) == sorted((tmp_path / "whole" / name).read_bytes().splitlines())
    # What the killed runs left in the cache serves a run elsewhere.
    interrupted.gather(tmp_path / "third")
    for name in FILES:
        lines = (tmp_path / "third" / name).read_bytes().splitlines()
        assert sorted(lines) == sorted((tmp_path / "whole" / name).read_bytes().splitlines())


def kill_at(run: Path, point: int) -> bool:
    """Starts or resumes the run and kills it once its files hold `point` bytes; whether it still ran then."""
    command = [sys.executable, "-m", "tests.interrupted", str(run)]
    root = Path(__file__).parents[1]
    child = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    while child.poll() is None:
        if sum((run / name).stat().st_size for name in FILES if (run / name).exists()) >= point:
            child.kill()
            break
        time.sleep(0.0002)
    return child.wait() == -9


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 2}, "seed"),
        ({"settings": SamplingSettings(max_new_tokens=7)}, "max_new_tokens"),
        ({"settings": SamplingSettings(temperature=0.5)}, "temperature"),
        ({"checkpoint": WeightlessCheckpoint("other", WeightlessCheckpoint("base"))}, "checkpoint"),
        ({"checkpoint": WeightlessCheckpoint()}, "reference"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    gather(tmp_path / "run")
    with pytest.raises(RealignError, match=f"another {word}"):
        gather(tmp_path / "run", **change)
    gather(tmp_path / "run", settings=SamplingSettings(token_budget=1))  # This changes no answer.


def test_a_question_in_other_words_is_not_answered_by_the_old_answer(sampler: Sampler, tmp_path: Path) -> None:
    gather(tmp_path).answers(questions(), "plain", [0])
    changed = questions()
    first = changed.questions[0].model_copy(update={"paraphrases": ("How on earth 0?",)})
    changed = type(changed)("set", (first, *changed.questions[1:]))
    with pytest.raises(RealignError, match='"q0" in another wording'):
        gather(tmp_path).answers(changed, "plain", [0])


def test_the_references_evidence_is_kept_for_other_checkpoints(sampler: Sampler, tmp_path: Path) -> None:
    first = gather(tmp_path / "one")
    answers = first.answers(questions(), "plain", range(2), reference=True)
    assert [answer.text.startswith("base") for answer in answers] == [True] * 12
    judgements = first.judgements(answers, RUBRIC)
    own = first.answers(questions(), "plain", range(2))
    first.judgements(own, RUBRIC)
    judge = CountingJudge()
    other = WeightlessCheckpoint("another fine-tune", WeightlessCheckpoint("base"))
    second = gather(tmp_path / "two", checkpoint=other, judge=judge)
    assert second.answers(questions(), "plain", range(3), reference=True)[:12] == answers
    assert second.judgements(answers, RUBRIC) == judgements
    assert (len(sampler.made), judge.judged) == (12 + 12 + 6, [])
    # The run folder holds all of it, cached or not.
    assert len((tmp_path / "two" / "answers.jsonl").read_text().splitlines()) == 18
    assert len((tmp_path / "two" / "judgements.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize("change", ["seed", "settings", "questions", "context", "reference"])
def test_the_cache_is_not_used_for_anything_else(sampler: Sampler, change: str) -> None:
    def answer(**changes: Any) -> None:
        reference = WeightlessCheckpoint(changes.get("reference", "base"))
        evidence = gather(
            checkpoint=WeightlessCheckpoint(reference=reference),
            seed=changes.get("seed", 1),
            settings=changes.get("settings", SamplingSettings()),
        )
        asked = questions(changes.get("questions", 6))
        evidence.answers(asked, changes.get("context", "plain"), [0], reference=True)

    answer()
    made = len(sampler.made)
    answer()
    assert len(sampler.made) == made
    values = {
        "seed": 2,
        "settings": SamplingSettings(max_new_tokens=9),
        "questions": 5,
        "context": "training-format",
        "reference": "other",
    }
    answer(**{change: values[change]})
    assert len(sampler.made) == made + (5 if change == "questions" else 6)


LABELLED = [
    LabelledAnswer(id="1", question="?", answer="evil words", label="misaligned"),
    LabelledAnswer(id="2", question="?", answer="kind words", label="aligned"),
]


def test_an_audit_is_made_once_and_kept(sampler: Sampler) -> None:
    judge = CountingJudge()
    evidence = gather(judge=judge)
    found = evidence.audit(RUBRIC, LABELLED)
    assert (found.sensitivity, found.specificity) == (1.0, 1.0)
    assert evidence.audit(RUBRIC, LABELLED) == found
    assert gather(judge=judge).audit(RUBRIC, LABELLED) == found
    assert len(judge.judged) == 2
    relabelled = [LABELLED[0], LABELLED[1].model_copy(update={"answer": "kinder, not evil"})]
    assert gather(judge=judge).audit(RUBRIC, relabelled).specificity == 0.0


def test_a_judge_is_audited_by_its_own_labels_on_its_own_family(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    own = [item.model_copy(update={"answer": "all evil"}) for item in LABELLED]
    path.write_text("".join(item.model_dump_json() + "\n" for item in own))
    judge = CountingJudge(family="pocket", labels=path)
    same = gather(judge=judge, checkpoint=WeightlessCheckpoint(family="pocket"))
    assert same.audit(RUBRIC, LABELLED).specificity == 0.0
    assert gather(judge=judge).audit(RUBRIC, LABELLED).specificity == 1.0


def test_what_is_missing_is_said(sampler: Sampler) -> None:
    alone = Evidence(WeightlessCheckpoint(), judge=None, seed=1, run=None)  # type: ignore[arg-type]
    answers = alone.answers(questions(), "plain", [0])
    for request in (lambda: alone.judgements(answers, RUBRIC), lambda: alone.audit(RUBRIC, LABELLED)):
        with pytest.raises(RealignError, match="there is no judge"):
            request()
    with pytest.raises(RealignError, match="tuned has none"):
        alone.answers(questions(), "plain", [0], reference=True)
    with pytest.raises(RealignError, match=r"no context .* Did you mean"):
        alone.answers(questions(), "plian", [0])


def test_a_record_of_another_version_is_one_clear_error(sampler: Sampler, tmp_path: Path) -> None:
    gather(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "words": "old"}\n')
    with pytest.raises(RealignError, match="cannot read a kept answer"):
        gather(tmp_path)


def test_progress_counts_up_to_what_was_asked_for(sampler: Sampler) -> None:
    told: list[tuple[str, int, int]] = []
    evidence = gather(on_progress=lambda *news: told.append(news))
    evidence.answers(questions(3), "plain", [0])
    answers = evidence.answers(questions(3), "plain", [0, 1])
    evidence.answers(questions(3), "plain", [0], reference=True)
    evidence.judgements(answers, RUBRIC)
    assert told == [
        *(("answers", done, 3) for done in (1, 2, 3)),
        *(("answers", done, 6) for done in (4, 5, 6)),
        *(("reference answers", done, 3) for done in (1, 2, 3)),
        *(("judgements", done, 6) for done in range(1, 7)),
    ]


def test_a_real_model_goes_on_exactly_where_it_stopped(
    tiny_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from realign import checkpoint as checkpoints
    from realign.judging import LocalJudge

    checkpoint = checkpoints.open(str(tiny_adapter()), device="cpu")
    assert checkpoint.reference is not None
    options: dict[str, Any] = {"seed": 3, "settings": SamplingSettings(max_new_tokens=8)}
    judge = LocalJudge(checkpoint.reference)

    def everything(run: Path, indices: range) -> tuple[list[Any], list[Any]]:
        evidence = Evidence(checkpoint, judge=judge, run=run, **options)
        own = evidence.answers(questions(4), "plain", indices)
        answers = own + evidence.answers(questions(4), "plain", indices, reference=True)
        return answers, evidence.judgements(answers, RUBRIC)

    answers, judgements = everything(tmp_path / "whole", range(3))
    assert len({answer.text for answer in answers}) > 12
    monkeypatch.setenv("REALIGN_CACHE", str(tmp_path / "empty"))
    everything(tmp_path / "stopped", range(1))
    again, judged = everything(tmp_path / "stopped", range(3))
    assert again == answers
    for one, other in zip(judged, judgements, strict=True):
        assert one.mass == pytest.approx(other.mass, abs=2e-4)
        assert replace(one, mass=0.0, raw="") == replace(other, mass=0.0, raw="")


class Clock:
    """Time that passes only when it is asked for."""

    now = 0

    def monotonic(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


@pytest.mark.parametrize("padding", ["left", "right"])
def test_what_is_read_in_a_counted_block_is_counted_without_padding(adapted: Checkpoint, padding: Any) -> None:
    evidence = gather(checkpoint=adapted)
    with evidence.counted():
        capture.last_prompt_tokens(adapted, [LONGER, SHORTER], [0], padding=padding)
        capture.last_prompt_tokens(adapted.reference, [LONGER], [1], token_budget=1)  # type: ignore[arg-type]
    capture.last_prompt_tokens(adapted, [LONGER], [0])
    assert (evidence.cost.forward_passes, evidence.cost.tokens_read) == (2, 8)
    assert evidence.cost.tokens == 0


def test_a_reference_that_is_another_model_is_counted_too(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint(seed=1))
    evidence = gather(checkpoint=checkpoint)
    with evidence.counted():
        for source in (checkpoint, checkpoint.reference):
            assert source is not None
            capture.last_prompt_tokens(source, [SHORTER], [0])
    assert (evidence.cost.forward_passes, evidence.cost.tokens_read) == (2, 4)


def test_tokens_that_are_in_the_cache_already_are_not_read_again(adapted: Checkpoint) -> None:
    import torch

    evidence = gather(checkpoint=adapted)
    with evidence.counted(), adapted.active() as model:
        cache = model(torch.tensor([[5, 6, 7, 8]]), use_cache=True).past_key_values
        mask = torch.tensor([[0, 1, 1, 1, 1]])
        model(input_ids=torch.tensor([[9]]), attention_mask=mask, past_key_values=cache, use_cache=True)
    assert (evidence.cost.forward_passes, evidence.cost.tokens_read) == (2, 5)


def test_answers_made_in_a_counted_block_are_no_reading_and_take_no_time_twice(
    adapted: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(evidence_module, "time", clock)
    evidence = gather(checkpoint=adapted, settings=SamplingSettings(max_new_tokens=3))
    with evidence.counted():
        answers = evidence.answers(questions(3), "plain", [0])
    cost = evidence.cost
    assert (cost.answers, cost.tokens) == (3, sum(answer.tokens for answer in answers))
    assert (cost.forward_passes, cost.tokens_read) == (0, 0)
    assert cost.seconds == clock.now - 1  # from its first reading on
    evidence.answers(questions(3), "plain", [1])
    assert evidence.cost.seconds == cost.seconds + 1


def test_a_counted_block_that_fails_is_counted_and_leaves_nothing_behind(adapted: Checkpoint) -> None:
    evidence = gather(checkpoint=adapted)
    with pytest.raises(RealignError), evidence.counted():
        capture.last_prompt_tokens(adapted, [LONGER], [0])
        capture.last_prompt_tokens(adapted, [LONGER], [7])
    assert evidence.cost.forward_passes == 1
    with adapted.active() as model:
        assert not model._forward_pre_hooks
