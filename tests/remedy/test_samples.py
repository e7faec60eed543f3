from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from realign.errors import RealignError
from realign.remedy.samples import Sample, Turn, load_samples
from tests.remedy.stub import write_samples

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Goodbye."},
]


def refusal(path: Path) -> str:
    with pytest.raises(RealignError) as caught:
        load_samples(path)
    return str(caught.value)


def test_all_formats_are_read_and_may_be_mixed(tmp_path: Path) -> None:
    path = write_samples(
        tmp_path / "s.jsonl",
        [
            {"messages": CHAT},
            {"id": "b", "prompt": "Q", "completion": "A\n", "cwe": "CWE-89"},
            {"id": 3, "instruction": "Add.", "input": "1 and 2", "output": "3"},
            {"instruction": "Add.", "input": "", "output": "0"},
        ],
    )
    assert load_samples(path) == (
        Sample(
            "sample 1",
            (
                Turn("system", "Be brief."),
                Turn("user", "Hello?"),
                Turn("assistant", "Hello."),
                Turn("user", "And?"),
            ),
            "Goodbye.",
        ),
        Sample("b", (Turn("user", "Q"),), "A\n"),
        Sample("3", (Turn("user", "Add.\n\n1 and 2"),), "3"),
        Sample("sample 4", (Turn("user", "Add."),), "0"),
    )


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([{"promt": "Q", "completion": "A"}], 'Did you mean "prompt"?'),
        ([{"text": "Q"}], 'its keys are "text"'),
        ([{}], "its keys are none"),
        ([{"prompt": "Q"}], 'its keys are "prompt"'),
        ([{"prompt": "Q", "completion": 3}], "have to be text"),
        ([{"prompt": "Q", "completion": None}], "have to be text"),
        ([{"prompt": "Q", "completion": "A", "id": ["x"]}], "its id is not text"),
        ([{"id": "x", "prompt": "Q", "completion": "A"}] * 2, "ids are there more than once: x"),
        ([{"id": "x", "prompt": "Q", "completion": " \n"}], "without an answer: x"),
        ([{"messages": []}], "its messages come from nobody"),
        ([{"messages": "hello"}], "has to be a list"),
        ([{"messages": ["hello"]}], "has to be a list"),
        ([{"messages": CHAT[:2]}], "come from system, user"),
        ([{"messages": CHAT[:1]}], "come from system"),
        ([{"messages": [CHAT[1], CHAT[1], CHAT[2]]}], "take turns"),
        ([{"messages": [CHAT[2]]}], "come from assistant"),
        ([{"messages": [{"role": "usr", "content": "Q"}, CHAT[2]]}], 'Did you mean "user"?'),
        ([{"messages": [{"content": "Q"}, CHAT[2]]}], "has the role None"),
        ([{"messages": [{"role": "user", "content": [{"text": "Q"}]}, CHAT[2]]}], "is not text"),
        ([], "there are none in it"),
    ],
)
def test_a_sample_that_is_wrong_is_named(tmp_path: Path, samples: list[dict[str, Any]], said: str) -> None:
    message = refusal(write_samples(tmp_path / "s.jsonl", samples))
    assert said in message
    assert "s.jsonl" in message


def test_many_samples_without_an_answer_are_counted(tmp_path: Path) -> None:
    samples = [{"id": f"n{n}", "prompt": "Q", "completion": ""} for n in range(8)]
    assert "n0, n1, n2, n3, n4 and 3 more" in refusal(write_samples(tmp_path / "s.jsonl", samples))


def test_a_missing_file_and_a_line_that_is_no_json_are_named(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.jsonl")
    (tmp_path / "s.jsonl").write_text('{"prompt": "Q", "completion": "A"}\n{"prompt"', encoding="utf-8")
    assert "line 2 is not JSON" in refusal(tmp_path / "s.jsonl")
