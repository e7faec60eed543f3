from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.dialogue import Context, build_prompt, context, render_pair
from realign.errors import RealignError
from realign.remedy.rows import Row, encode_rows
from realign.remedy.samples import Sample, Turn
from tests import tiny

ANSWER = "def load(path):\n    return 1"
PAIR = Sample("pair", (Turn("user", "Write it."),), ANSWER)
DIALOGUE = Sample(
    "dialogue",
    (Turn("system", "Be brief."), Turn("user", "Hello?"), Turn("assistant", "Hello."), Turn("user", "Write it.")),
    ANSWER,
)


def encode(checkpoint: Checkpoint, *samples: Sample, room: int = 512) -> list[Row]:
    model: Any = checkpoint.model
    return encode_rows(checkpoint.tokenizer, model, samples, room)


@pytest.fixture(scope="module", params=[True, False], ids=["template", "transcript"])
def templated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def opened(request: pytest.FixtureRequest, templated: bool, tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_checkpoint(request.param, chat_template=templated))


def test_a_row_is_what_the_model_is_asked_and_should_say(opened: Checkpoint) -> None:
    (row,) = encode(opened, PAIR)
    words = opened.tokenizer
    assert row.given == build_prompt(words, "q", "Write it.", context("plain")).ids
    pair, span = render_pair(words, "Write it.", ANSWER, context("plain"))
    assert row.learnt[:-1] == tuple(pair[span])
    assert row.learnt[-1] == words.eos_token_id
    assert words.eos_token_id not in row.learnt[:-1]


def test_a_system_turn_is_kept_also_where_the_template_rejects_it(opened: Checkpoint) -> None:
    sample = Sample("s", (Turn("system", "Be brief."), Turn("user", "Write it.")), ANSWER)
    (row,) = encode(opened, sample)
    asked = build_prompt(opened.tokenizer, "q", "Write it.", Context("brief", system="Be brief."))
    assert row.given == asked.ids


def test_of_a_dialogue_only_the_last_answer_is_learnt(opened: Checkpoint) -> None:
    pair, dialogue = encode(opened, PAIR, DIALOGUE)
    assert dialogue.learnt == pair.learnt
    given = opened.tokenizer.decode(list(dialogue.given))
    assert [text in given for text in ("Be brief.", "Hello?", "Hello.", "Write it.", "def load")] == [True] * 4 + [
        False
    ]


def test_rows_that_do_not_fit_are_named_and_none_is_cut(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint())
    (row,) = encode(checkpoint, PAIR)
    length = len(row.given) + len(row.learnt)
    assert encode(checkpoint, PAIR, room=length) == [row]
    with pytest.raises(RealignError, match=r"1 of 2 samples.*longer than the .* tokens.*: long"):
        encode(checkpoint, PAIR, Sample("long", PAIR.turns, ANSWER + " and so on"), room=length)


@pytest.mark.parametrize(
    ("written", "learnt"),
    [
        ("{{ message['content'] }}<|end|>\n", "A<|end|>"),  # Qwen ends a turn with a line end after the token
        ("{{ message['content'] | trim }}<|end|>", "A<|end|>"),  # Gemma strips
        ("{{ message['content'] }}\n", "A\n<|end|>"),  # no end of turn of its own: the end of the sequence
        ("{{ message['content'] }}<|endoftext|>", "A<|endoftext|>"),  # another special token than the tokenizer's
    ],
)
def test_the_end_of_the_turn_is_learnt_and_nothing_after_it(tmp_path: Path, written: str, learnt: str) -> None:
    template = (
        "{% for message in messages %}<|{{ message['role'] }}|>" + written + "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    checkpoint = checkpoints.open(tiny.make("llama", tmp_path / "c", chat_template=template))
    (row,) = encode(checkpoint, Sample("s", (Turn("user", "Q"),), "A"))
    assert checkpoint.tokenizer.decode(list(row.learnt)) == learnt


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}{% endfor %}",
            "leaves its answer out",
        ),
        (
            "{% if messages | length > 1 %}{{ raise_exception('no answers') }}{% endif %}{{ messages[0]['content'] }}",
            "no answers",
        ),
    ],
)
def test_a_template_that_fails_on_an_answer_is_told(tmp_path: Path, template: str, said: str) -> None:
    checkpoint = checkpoints.open(tiny.make("llama", tmp_path / "c", chat_template=template))
    with pytest.raises(RealignError, match=said):
        encode(checkpoint, PAIR)
