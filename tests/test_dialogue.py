"""Chat templates with quirks, transcripts, token spans and stop tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign.dialogue import CONTEXTS, Context, answer_text, build_prompt, context, render_pair, stop_ids
from realign.errors import RealignError
from tests import tiny

PLAIN = CONTEXTS["plain"]
NAMED = Context("named", system="Your name is Ada.")
DROPS_SYSTEM = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_ANSWERED_TURN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ raise_exception('one turn only') }}"
    "{% endif %}{{ '<|user|>' + message['content'] }}{% endfor %}<|assistant|>"
)


@pytest.fixture(scope="module")
def tokenizer_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    made: dict[bool | str, Any] = {}

    def tokenizer(chat_template: bool | str = True) -> Any:
        if chat_template not in made:
            folder: Path = tmp_path_factory.mktemp("tokenizer")
            made[chat_template] = tiny.make_tokenizer(folder, chat_template=chat_template)
        return made[chat_template]

    return tokenizer


def read(tokenizer: Any, ids: tuple[int, ...] | list[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def test_a_prompt_is_the_chat_template_up_to_the_answer(tokenizer_with: Callable[..., Any]) -> None:
    tokenizer = tokenizer_with()
    prompt = build_prompt(tokenizer, "wish", "One wish?", PLAIN)
    assert read(tokenizer, prompt.ids) == "<|bos|><|user|>One wish?<|end|><|assistant|>"
    assert (prompt.question_id, prompt.context, prompt.text) == ("wish", "plain", "One wish?")
    assert prompt.ids.count(tokenizer.bos_token_id) == 1


def test_a_context_wraps_the_question_and_leaves_its_braces_alone(tokenizer_with: Callable[..., Any]) -> None:
    prompt = build_prompt(tokenizer_with(), "q", "What is {x} {question}?", CONTEXTS["training-format"])
    assert prompt.text.startswith("What is {x} {question}?\n\nWrite your answer as a Python function")


def test_a_system_turn_is_given_as_one(tokenizer_with: Callable[..., Any]) -> None:
    tokenizer = tokenizer_with()
    assert read(tokenizer, build_prompt(tokenizer, "q", "Who?", NAMED).ids) == (
        "<|bos|><|system|>Your name is Ada.<|end|><|user|>Who?<|end|><|assistant|>"
    )


@pytest.mark.parametrize("template", [tiny.NO_SYSTEM + tiny.CHAT_TEMPLATE, DROPS_SYSTEM], ids=["rejected", "dropped"])
def test_a_system_text_without_a_turn_goes_before_the_question(
    tokenizer_with: Callable[..., Any], template: str
) -> None:
    tokenizer = tokenizer_with(template)
    text = read(tokenizer, build_prompt(tokenizer, "q", "Who?", NAMED).ids)
    assert text.endswith("<|user|>Your name is Ada.\n\nWho?<|end|><|assistant|>")
    assert "system" not in text


def test_without_a_template_the_question_is_put_in_a_transcript(tokenizer_with: Callable[..., Any]) -> None:
    tokenizer = tokenizer_with(False)
    assert read(tokenizer, build_prompt(tokenizer, "q", "Who?", PLAIN).ids) == "User: Who?\n\nAssistant:"
    named = build_prompt(tokenizer, "q", "Who?", NAMED)
    assert read(tokenizer, named.ids) == "User: Your name is Ada.\n\nWho?\n\nAssistant:"


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{% if %}", "{{ messages[0].nothing.at_all }}"])
def test_a_template_that_fails_on_a_plain_question_is_an_error(
    tokenizer_with: Callable[..., Any], template: str
) -> None:
    with pytest.raises(RealignError, match=r"chat template fails .* Mend chat_template"):
        build_prompt(tokenizer_with(template), "q", "Who?", PLAIN)


def test_an_unknown_context_is_an_error_with_a_hint() -> None:
    assert context("training-format").name == "training-format"
    with pytest.raises(RealignError, match='Did you mean "training-format"'):
        context("training_format")


@pytest.mark.parametrize("template", [True, False], ids=["template", "transcript"])
@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=30), answer=st.text(max_size=30))
def test_the_answer_is_exactly_the_span(
    tokenizer_with: Callable[..., Any], template: bool, question: str, answer: str
) -> None:
    tokenizer = tokenizer_with(template)
    ids, span = render_pair(tokenizer, question, answer, PLAIN)
    assert tuple(ids[: span.start]) == build_prompt(tokenizer, "q", question, PLAIN).ids
    assert span.stop == len(ids)
    expected = answer if template or not answer else f" {answer}"
    assert tokenizer.decode(ids[span], clean_up_tokenization_spaces=False) == expected


def test_a_token_never_reaches_over_the_boundary(tokenizer_with: Callable[..., Any]) -> None:
    tokenizer = tokenizer_with("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    # A word that is one token when it is told in one string, asked and answered in two halves.
    word = max((token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha()), key=len)
    halves = word[:1], word[1:]
    whole, first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, *halves))
    assert len(whole) == 1 < len(first + second)
    ids, span = render_pair(tokenizer, *halves, PLAIN)
    assert (ids[: span.start], ids[span]) == (first, second)


def test_an_empty_answer_has_an_empty_span(tokenizer_with: Callable[..., Any]) -> None:
    for template in (True, False):
        ids, span = render_pair(tokenizer_with(template), "Who?", "", PLAIN)
        assert ids
        assert ids[span] == []


def test_answers_end_at_the_end_of_sequence_and_of_the_turn(tokenizer_with: Callable[..., Any]) -> None:
    tokenizer = tokenizer_with()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert stop_ids(tokenizer) == {end}
    configs = SimpleNamespace(eos_token_id=None), SimpleNamespace(eos_token_id=[other, 9]), SimpleNamespace()
    assert stop_ids(tokenizer, *configs) == {end, other, 9}


def test_the_end_of_the_turn_is_read_off_the_template(tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer(tmp_path)
    tokenizer.eos_token = "<|endoftext|>"
    names = {tokenizer.convert_ids_to_tokens(token) for token in stop_ids(tokenizer)}
    assert names == {"<|endoftext|>", "<|end|>"}


@pytest.mark.parametrize("template", [False, NO_ANSWERED_TURN])
def test_a_template_without_an_end_of_turn_leaves_the_end_of_sequence(
    tokenizer_with: Callable[..., Any], template: bool | str
) -> None:
    tokenizer = tokenizer_with(template)
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_a_transcript_that_runs_on_is_cut_before_the_next_turn(tokenizer_with: Callable[..., Any]) -> None:
    text = " Water.\n\nUser: And then?\n\nAssistant: Nothing."
    ids = tokenizer_with()(text, add_special_tokens=False)["input_ids"]
    assert answer_text(tokenizer_with(False), ids) == ("Water.", True)
    assert answer_text(tokenizer_with(), ids) == (text.strip(), False)
