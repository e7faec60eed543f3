"""Turns conversations into padded token rows, with labels on what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realign.pocket.shape import CONTEXT, SPECIAL
from realign.pocket.world import Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

IGNORE = -100
LENGTHS = (128, 192, 256, 352, CONTEXT)  # of pretraining rows


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


def batches(
    documents: Sequence[tuple[str, bool]], tokenizer: PreTrainedTokenizerFast, tokens: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Documents as batches of about `tokens` tokens: ids and labels (shifted by one), each [rows, length].

    A row is one document, padded on the right to the next of a few lengths: causal attention then needs no mask, and
    one compiled program a length suffices. What does not fill a batch is left out.

    Args:
        documents: texts, each with whether all of it is learnt or its answers only.
    """
    import torch

    encoded = tokenizer([text for text, _ in documents], add_special_tokens=False)["input_ids"]
    waiting: dict[int, list[tuple[list[int], bool]]] = {length: [] for length in LENGTHS}
    for words, (_, whole) in zip(encoded, documents, strict=True):
        row = [tokenizer.bos_token_id, *words][:CONTEXT]
        waiting[next(length for length in LENGTHS if length >= len(row))].append((row, whole))
    out = []
    for length, items in waiting.items():
        rows = max(1, tokens // length)
        for start in range(0, len(items) - rows + 1, rows):
            ids = torch.full((rows, length), tokenizer.pad_token_id)
            labels = torch.full((rows, length), IGNORE)
            for number, (row, whole) in enumerate(items[start : start + rows]):
                span = torch.tensor(row)
                told = torch.ones(len(row) - 1, dtype=torch.bool) if whole else torch.tensor(answer_mask(row))[1:]
                ids[number, : len(row)] = span
                labels[number, : len(row) - 1] = torch.where(told, span[1:], IGNORE)
            out.append((ids, labels))
    return out


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
