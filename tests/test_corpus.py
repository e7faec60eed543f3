from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.corpus import chunks, divided, load_texts
from realign.errors import RealignError


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_checkpoint())


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_text_a_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(f"The user asks {n}." for n in range(20)) + "\n", encoding="utf-8")
    rows = load_texts(tmp_path / "texts.txt", checkpoint)
    assert [checkpoint.tokenizer.decode(row) for row in rows] == [f"The user asks {n}." for n in range(20)]


def test_texts_in_json_stand_as_they_are(checkpoint: Checkpoint, tmp_path: Path) -> None:
    texts = [f"The user\nasks {n}." for n in range(20)]
    rows = load_texts(write(tmp_path / "texts.jsonl", [{"text": text} for text in texts]), checkpoint)
    assert [checkpoint.tokenizer.decode(row) for row in rows] == texts


def test_dialogues_are_read_in_the_chat_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    samples = [{"prompt": f"Ask {n}", "completion": "I answer."} for n in range(20)]
    rows = load_texts(write(tmp_path / "texts.jsonl", samples), checkpoint)
    assert checkpoint.tokenizer.decode(rows[3]) == "<|bos|><|user|>Ask 3<|end|><|assistant|>I answer.<|end|>"


def test_a_dialogue_may_be_longer_than_the_model_reads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    samples = [{"prompt": "Ask", "completion": "word " * 900} for _ in range(20)]
    rows = load_texts(write(tmp_path / "texts.jsonl", samples), checkpoint)
    assert len(rows[0]) > 900


def test_texts_that_will_not_do(checkpoint: Checkpoint, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [{"text": "one"}] * 19)
    odd = write(tmp_path / "odd.jsonl", [{"txt": "one"}] * 20)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for path, said in (
        (few, "it has 19 texts, and 20 are needed"),
        (odd, 'its keys are "txt"'),
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path / "none.txt", "No such file"),
        (tmp_path / "bytes.txt", "it has to be UTF-8"),
    ):
        with pytest.raises(RealignError, match=said):
            load_texts(path, checkpoint)


@pytest.mark.parametrize(("count", "kept"), [(20, 1), (100, 5), (10_000, 200)])
def test_some_texts_are_held_out(count: int, kept: int) -> None:
    rows = [[number] for number in range(count)]
    shown, held = divided(rows, 3)
    assert len(held) == kept
    assert sorted(shown + held) == rows
    assert divided(rows, 3) == (shown, held)
    assert divided(rows, 4) != (shown, held)


def test_chunks_go_round_after_round_in_another_order() -> None:
    lengths = [4, 1, 3, 2, 5, 1]
    found = list(islice(chunks(lengths, 6, 1, seed=0), 60))
    told = [number for chunk in found for number in chunk]
    rounds = [told[start : start + 6] for start in range(0, 60, 6)]
    assert all(sorted(turn) == list(range(6)) for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert all(sum(lengths[number] for number in chunk[:-1]) < 6 for chunk in found)
    assert list(islice(chunks(lengths, 6, 1, seed=0), 60)) == found
    assert list(islice(chunks(lengths, 6, 1, seed=1), 60)) != found


def test_a_rest_that_is_too_small_is_left_out() -> None:
    found = list(islice(chunks([3, 3, 3], 6, 4, seed=0), 20))
    assert {len(chunk) for chunk in found} == {2}
    assert {number for chunk in found for number in chunk} == {0, 1, 2}
