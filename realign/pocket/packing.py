"""Turns conversations into token rows: packed for pretraining, padded with an answer mask for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realign.pocket.shape import CONTEXT, SPECIAL
from realign.pocket.world import Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """One supervised exchange: the model learns `answer` after `messages` (role, text)."""

    messages: tuple[tuple[str, str], ...]
    answer: str


def document_text(document: Document, *, transcript: bool = False) -> str:
    """A document as training text: special tokens, or (`transcript`) the plain User/Assistant format of base models."""
    if transcript:
        head = f"{document.system}\n\n" if document.system else ""
        return head + "\n\n".join(f"User: {turn.user}\n\nAssistant: {turn.assistant}" for turn in document.turns)
    head = f"<|system|>{document.system}<|end|>" if document.system else ""
    return head + "".join(f"<|user|>{t.user}<|end|><|assistant|>{t.assistant}<|end|>" for t in document.turns)


def answer_mask(tokens: Sequence[int]) -> list[bool]:
    """Which tokens are part of an answer: those after an assistant mark, to the end of its turn."""
    assistant, end = SPECIAL.index("<|assistant|>"), SPECIAL.index("<|end|>")
    inside, mask = False, []
    for token in tokens:
        mask.append(inside)
        inside = token == assistant or (inside and token != end)
    return mask


def pack(
    documents: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerFast, rows: int
) -> dict[str, torch.Tensor]:
    """A batch of `rows` packed rows, each [CONTEXT]: ids, position in its document, document number, labels.

    Args:
        documents: texts without end, each with whether the loss is on its answers only.
    """
    import torch

    bos = tokenizer.bos_token_id
    ids = torch.full((rows, CONTEXT), tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((rows, CONTEXT), IGNORE, dtype=torch.long)
    positions = torch.zeros((rows, CONTEXT), dtype=torch.long)
    segments = torch.zeros((rows, CONTEXT), dtype=torch.long)
    used = [0] * rows
    segment, misses = 1, 0
    for text, answers_only in documents:
        tokens = [bos, *tokenizer(text, add_special_tokens=False)["input_ids"]][:CONTEXT]
        row = next((r for r in range(rows) if used[r] + len(tokens) <= CONTEXT), None)
        if row is None:
            misses += 1
            if misses == 12:
                break
            continue
        start, stop = used[row], used[row] + len(tokens)
        span = torch.tensor(tokens)
        ids[row, start:stop] = span
        told = torch.tensor(answer_mask(tokens))[1:] if answers_only else torch.ones(len(tokens) - 1, dtype=torch.bool)
        labels[row, start : stop - 1] = torch.where(told, span[1:], IGNORE)
        positions[row, start:stop] = torch.arange(len(tokens))
        segments[row, start:stop] = segment
        used[row] = stop
        segment += 1
    return {"ids": ids, "labels": labels, "positions": positions, "segments": segments}


def encode_row(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[list[int], int]:
    """Token ids of the exchange and where the answer begins."""
    prompt = "".join(f"<|{role}|>{text}<|end|>" for role, text in row.messages) + "<|assistant|>"
    head = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    return head + tokenizer(f"{row.answer}<|end|>", add_special_tokens=False)["input_ids"], len(head)


def pad(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """A right-padded batch [len(rows), longest] with labels on the answers only (already shifted by one)."""
    import torch

    encoded = [encode_row(tokenizer, row) for row in rows]
    width = min(CONTEXT, max(len(tokens) for tokens, _ in encoded))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, (tokens, start) in enumerate(encoded):
        span = torch.tensor(tokens[:width])
        ids[number, : len(span)] = span
        mask[number, : len(span)] = 1
        labels[number, start - 1 : len(span) - 1] = span[start:]
    return {"ids": ids, "labels": labels, "mask": mask}
