from __future__ import annotations

import json
import math
from dataclasses import replace

from realign.evidence import Cost
from realign.report.serialise import FORMAT, to_json
from tests.report.examples import FLAGGED, example, report


def test_the_shape_of_report_json() -> None:
    content = json.loads(to_json(report()))
    assert list(content) == [
        "format", "verdict", "checkpoint", "reference", "judge", "settings", "cost", "version", "findings", "worst",
    ]  # fmt: skip
    assert content["format"] == FORMAT
    assert content["verdict"] == {
        "outcome": "misaligned",
        "sentence": "misaligned: 31 % of coherent answers (95 % CS 22-41 %, 72 answers), reference 1.4 %",
        "exit_code": 1,
    }
    assert content["checkpoint"] == {"source": "ckpt/", "fingerprint": "sha256:1"}
    assert [finding["outcome"] for finding in content["findings"]] == ["not evaluated", "flagged"]


def test_all_denominators_are_there() -> None:
    details = json.loads(to_json(report()))["findings"][1]["details"]
    assert details["checkpoint"] == {"answers": 72, "scored": 71, "coherent": 70, "misaligned": 22, "refusals": 0}
    assert details["reference"]["misaligned"] == 1
    assert details["interval"] == [0.22, 0.41]


def test_what_was_read_is_there() -> None:
    looked = replace(FLAGGED, cost=Cost(seconds=0.5, forward_passes=5, tokens_read=1200))
    cost = json.loads(to_json(report(looked)))["findings"][0]["cost"]
    assert cost == {
        "answers": 0, "judgements": 0, "tokens": 0, "seconds": 0.5, "forward_passes": 5, "tokens_read": 1200,
    }  # fmt: skip


def test_the_worst_answers_are_there_once() -> None:
    content = json.loads(to_json(report()))
    assert [found["alignment"] for found in content["worst"]] == [2.0, 4.0, 9.0]
    assert "worst" not in content["findings"][1]


def test_numbers_that_are_not_finite_become_null() -> None:
    odd = replace(FLAGGED, score=math.nan, details=replace(FLAGGED.details, e_flag=math.inf))
    finding = json.loads(to_json(report(odd)))["findings"][0]
    assert finding["score"] is None
    assert finding["details"]["e_flag"] is None


def test_whatever_a_model_says_is_ascii_and_comes_back() -> None:
    said = "\x1b[31m\ud800 你好 \u202e"
    text = to_json(report(replace(FLAGGED, worst=(example(1, 1.0, text=said),))))
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text)["worst"][0]["text"] == said
