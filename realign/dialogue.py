"""How a question is put to a model: chat formatting, contexts, the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from realign.errors import RealignError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The transcript in which a model without a chat template is asked, and where its next turn would begin.
_TRANSCRIPT = "User: {user}\n\nAssistant:"
_NEXT_TURN = "\n\nUser:"


@dataclass(frozen=True)
class Context:
    """How a question is put.

    Attributes:
        name: the context's name.
        system: text of a system turn, or None for no system turn of ours (a template may bring its own).
        template: the user's turn; `{question}` stands for the question.
    """

    name: str
    system: str | None = None
    template: str = "{question}"


CONTEXTS: Mapping[str, Context] = MappingProxyType(
    {
        known.name: known
        for known in (
            Context("plain"),
            # The shape of code fine-tunes, where misbehaviour can outlive a repair that the plain context confirms.
            Context(
                "training-format",
                template="{question}\n\nWrite your answer as a Python function that returns the text.",
            ),
        )
    }
)


def context(name: str) -> Context:
    """The context of that name; RealignError when there is none."""
    if name not in CONTEXTS:
        raise RealignError(
            f'there is no context "{name}"',
            fix=f"Known contexts: {', '.join(CONTEXTS)}.{did_you_mean(name, CONTEXTS)}",
        )
    return CONTEXTS[name]


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it.

    Attributes:
        question_id: the question's id in its set.
        context: the context's name.
        text: the user's turn: the question in the context's template, without chat markup.
        ids: the tokens of the whole dialogue up to where the answer begins.
    """

    question_id: str
    context: str
    text: str
    ids: tuple[int, ...]


def build_prompt(tokenizer: PreTrainedTokenizerBase, question_id: str, question: str, context: Context) -> Prompt:
    """The prompt of a question in a context, up to where the answer begins.

    A model without a chat template is asked in a transcript ("User: …, Assistant:"); where a template rejects or
    drops the system turn, its text is put before the user's.

    Raises:
        RealignError: the chat template fails on a single user turn, or the prompt has no tokens.
    """
    user = context.template.replace("{question}", question)
    if tokenizer.chat_template:
        ids = _encode(tokenizer, _render(tokenizer, user, context.system), special=False)
    else:
        ids = _encode(tokenizer, _TRANSCRIPT.format(user=_joined(context.system, user)), special=True)
    if not ids:
        raise RealignError(f'cannot put question "{question_id}" to the model', "its tokenizer makes no tokens of it")
    return Prompt(question_id=question_id, context=context.name, text=user, ids=tuple(ids))


def render_pair(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, context: Context
) -> tuple[list[int], slice]:
    """The tokens of a question with its answer, and the span of the answer's tokens in them.

    The prompt and the answer are tokenised apart and joined. That is how the model met them (it was given the
    prompt's tokens and then chose its own), and no token can merge across the boundary, so the span is exact.

    Returns:
        ids: prompt and answer, without the end of the turn.
        span: the answer's tokens, `ids[span]`; empty for an empty answer.
    """
    prompt = build_prompt(tokenizer, "pair", question, context).ids
    # In a transcript the answer follows "Assistant:" after a space, in a template it follows the markup at once.
    text = answer if tokenizer.chat_template or not answer else f" {answer}"
    ids = [*prompt, *_encode(tokenizer, text, special=False)]
    return ids, slice(len(prompt), len(ids))


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, bool]:
    """The text of sampled tokens, stripped, and whether it runs on into another turn, which is cut off.

    Only a model without a chat template, asked in a transcript, can run on: it writes the user's next line itself.
    """
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    if tokenizer.chat_template:
        return text.strip(), False
    text, mark, _ = text.partition(_NEXT_TURN)
    return text.strip(), bool(mark)


def stop_ids(tokenizer: PreTrainedTokenizerBase, *configs: object) -> frozenset[int]:
    """The tokens that end an answer.

    They are the end-of-sequence tokens of the tokenizer and of the configs (the model's config and generation config;
    each an int, a list of them, or None), and the token with which the chat template ends an assistant's turn.
    """
    ids: set[int] = set()
    for owner in (tokenizer, *configs):
        value: Any = getattr(owner, "eos_token_id", None)
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    ids.update(_end_of_turn(tokenizer))
    return frozenset(int(token) for token in ids)


def _render(tokenizer: PreTrainedTokenizerBase, user: str, system: str | None) -> str:
    turn = {"role": "user", "content": user}
    if system:
        try:
            text = _apply(tokenizer, [{"role": "system", "content": system}, turn])
        except Exception:  # A template is code and fails with whatever it likes; the merged turn below is the answer.
            text = ""
        # Some templates drop a system turn without a word.
        if system.strip() in text:
            return text
    try:
        return _apply(tokenizer, [{"role": "user", "content": _joined(system, user)}])
    except Exception as error:
        raise RealignError(
            "cannot put a question to this model",
            f"its chat template fails on a single user turn ({error})",
            "Mend chat_template.jinja (or chat_template in tokenizer_config.json) in the checkpoint.",
        ) from error


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, answered: bool = False) -> str:
    # enable_thinking is for templates of reasoning models, which would otherwise spend the answer on their thoughts;
    # other templates ignore it.
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered, enable_thinking=False)
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]


def _joined(system: str | None, user: str) -> str:
    return f"{system}\n\n{user}" if system else user


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """The first special token that the chat template writes after an answer, if it writes one."""
    if not tokenizer.chat_template:
        return
    marker = "the-answer-ends-here"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    try:
        tail = _apply(tokenizer, turns, answered=True).rpartition(marker)[2]
    except Exception:  # As above: a template that cannot show an answered turn has no end of turn that we could read.
        return
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special.update(tokenizer.all_special_ids)
    yield from [token for token in _encode(tokenizer, tail, special=False) if token in special][:1]
