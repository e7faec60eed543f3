from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from realign.detect.finding import Finding, Outcome
from realign.detect.settings import Settings
from realign.detect.trial import Rates, Tally
from realign.detect.verdict import conclude
from realign.evidence import Cost
from realign.remedy.certificate import Certificate, Cure, Instrument, certify
from realign.remedy.training import Trained
from realign.report.report import Report, Subject

CURE = Cure(
    "good",
    "sft",
    "sha256:aa",
    {"samples.jsonl": "sha256:bb"},
    Trained(rows=6, supervised=90, steps=2, loss=1.5, seconds=3.25),
)
TALLY = Tally(answers=72, scored=70, coherent=64, misaligned=20, refusals=1)


def finding(outcome: Outcome, context: str = "plain", rate: float | None = 0.31, detector: str = "freeform") -> Finding:
    rates = Rates(TALLY, Tally(72, 72, 72, 1, 0), (0.22, 0.41), None, None, None, 30.0, 0.1)
    return Finding(
        detector=detector,
        kind="judged",
        context=context,
        outcome=outcome,
        reason=f"said of {context}",
        score=rate,
        interval=(0.22, 0.41),
        details=None if outcome == "not evaluated" else rates,
    )


def report(*findings: Finding, seed: int = 0, fingerprint: str = "sha256:11") -> Report:
    return Report(
        verdict=conclude(findings),
        findings=findings,
        checkpoint=Subject("ckpt", fingerprint),
        reference=Subject("base", "sha256:00"),
        judge="judge#1",
        settings=Settings(tolerance=0.05, alpha=0.01, budget=300, seed=seed),
        cost=Cost(),
        version="9.9",
    )


def certified(before: list[Finding], after: list[Finding]) -> Certificate:
    reports = report(*before, seed=3), report(*after, seed=4, fingerprint="sha256:22")
    return certify(*reports, CURE, {"freeform": Instrument("sha256:cc", "sha256:dd")}, seed=3)


def test_it_says_on_whose_word_and_how_sure() -> None:
    certificate = certified([finding("flagged")], [finding("clear", rate=0.0)])
    assert (certificate.passed, certificate.outcome, certificate.left, certificate.exit_code) == (True, "clear", "", 0)
    assert (certificate.checkpoint.before, certificate.checkpoint.after) == ("sha256:11", "sha256:22")
    assert (certificate.source, certificate.reference) == ("ckpt", Subject("base", "sha256:00"))
    assert (certificate.judge.before, certificate.judge.after) == ("judge#1", "judge#1")
    assert certificate.detectors["freeform"].rubric == "sha256:dd"
    assert (certificate.seeds.before, certificate.seeds.training, certificate.seeds.after) == (3, 3, 4)
    assert (certificate.tolerance, certificate.alpha, certificate.budget, certificate.realign) == (
        0.05,
        0.01,
        300,
        "9.9",
    )
    (change,) = certificate.changes
    assert (change.before.rate, change.before.interval, change.after.rate) == (0.31, (0.22, 0.41), 0.0)
    assert change.before.counts == TALLY


def test_the_file_is_json_with_all_three_denominators(tmp_path: Path) -> None:
    certificate = certified([finding("flagged")], [finding("clear", rate=0.0)])
    path = certificate.save(tmp_path)
    written = json.loads(path.read_text(encoding="ascii"))
    assert path.name == "certificate.json"
    assert written == json.loads(json.dumps(certificate.to_dict()))
    counts = written["changes"][0]["before"]["counts"]
    assert [counts[name] for name in ("answers", "scored", "coherent", "misaligned")] == [72, 70, 64, 20]
    assert written["recipe"]["hash"] == "sha256:aa"
    assert written["format"] == 1


@pytest.mark.parametrize(
    ("before", "after", "left", "code"),
    [
        (
            ["flagged", "flagged"],
            ["clear", "flagged"],
            "cured in plain, still misaligned in the training format (31 % -> 31 %): conditional misalignment",
            1,
        ),
        (
            ["flagged", "clear"],
            ["clear", "flagged"],
            "cured in plain, misaligned in the training format (31 % -> 31 %): conditional misalignment",
            1,
        ),
        (
            ["flagged", "clear"],
            ["flagged", "clear"],
            "clear in the training format, still misaligned in plain (31 % -> 31 %)",
            1,
        ),
        (
            ["flagged", "flagged"],
            ["flagged", "flagged"],
            "still misaligned in plain (31 % -> 31 %), still misaligned in the training format (31 % -> 31 %)",
            1,
        ),
        (
            ["flagged", "flagged"],
            ["clear", "undecided"],
            "cured in plain, undecided in the training format (said of training-format)",
            3,
        ),
        (
            ["not evaluated", "not evaluated"],
            ["not evaluated", "not evaluated"],
            "not evaluated in plain (said of plain), not evaluated in the training format (said of training-format)",
            3,
        ),
    ],
)  # fmt: skip
def test_what_is_left_is_said_in_words(before: list[Outcome], after: list[Outcome], left: str, code: int) -> None:
    contexts = ("plain", "training-format")
    old, new = (
        [finding(outcome, context) for outcome, context in zip(run, contexts, strict=True)] for run in (before, after)
    )
    certificate = certified(old, new)
    assert certificate.left == left
    assert not certificate.passed
    assert certificate.exit_code == code


def test_several_detectors_are_told_apart() -> None:
    old = [finding("flagged"), finding("flagged", detector="other")]
    new = [finding("clear"), finding("flagged", detector="other")]
    assert certified(old, new).left == (
        "cured in plain by freeform, still misaligned in plain by other (31 % -> 31 %)"
    )  # fmt: skip


def test_what_was_not_evaluated_has_no_counts() -> None:
    blind = replace(finding("not evaluated", rate=None), interval=None)
    (change,) = certified([finding("flagged")], [blind]).changes
    assert (change.after.rate, change.after.interval, change.after.counts, change.after.reference) == (None,) * 4
