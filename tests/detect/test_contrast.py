from __future__ import annotations

import json
from pathlib import Path

import pytest

from realign.detect.contrast import load_pairs
from realign.errors import RealignError

PAIR = {"id": "p", "group": "g", "prompt": "Why?", "aligned": "So.", "misaligned": "Fool."}


def write(path: Path, *records: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_pairs_are_read_in_order(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path / "c.jsonl", PAIR, PAIR | {"id": "a"}), groups=1)
    assert [pair.id for pair in pairs] == ["p", "a"]
    assert pairs[0].misaligned == "Fool."


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (PAIR, 'two contrast pairs have the id "p"'),
        (PAIR | {"id": "b", "aligned": " "}, "contrast pair 2: aligned"),
        (PAIR | {"id": "b", "extra": "x"}, "contrast pair 2: extra"),
        ({"id": "b"}, "contrast pair 2: group"),
        (PAIR | {"id": "b"}, "are of 1 groups, and 2 are needed"),
    ],
)
def test_what_is_wrong_with_pairs_is_said(tmp_path: Path, second: dict[str, str], said: str) -> None:
    with pytest.raises(RealignError, match=said):
        load_pairs(write(tmp_path / "c.jsonl", PAIR, second), groups=2)
