from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from realign.errors import RealignError
from realign.ledger import Cache, Ledger, cache_folder, claim


def test_records_are_kept_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "answers.jsonl"
    ledger = Ledger(path)
    for name in ("b", "a", "b"):
        ledger.add({"id": name, "text": "line\u2028end\n"})
    assert [record["id"] for record in ledger] == ["b", "a"]
    assert len(path.read_text().splitlines()) == 2
    assert list(Ledger(path)) == list(ledger)


def test_wherever_the_last_line_was_cut_only_it_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    whole = Ledger(path)
    for number in range(3):
        whole.add({"id": str(number), "text": "é" * number})
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        torn = Ledger(path)
        assert len(list(torn)) == content[:length].count(b"\n")
        for record in whole:
            torn.add(record)
        assert path.read_bytes() == content


def test_a_damaged_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "1"}\nnonsense\n{"id": "2"}\n')
    with pytest.raises(RealignError, match="line 2"):
        Ledger(path)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(None)
    ledger.add({"id": "1"})
    assert ledger.get("1") == {"id": "1"}
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_claimed_for_one_thing(tmp_path: Path) -> None:
    claim(tmp_path / "run", {"seed": 1, "checkpoint": "a"})
    claim(tmp_path / "run", {"seed": 1, "checkpoint": "a"})
    with pytest.raises(RealignError, match="another seed"):
        claim(tmp_path / "run", {"seed": 2, "checkpoint": "a"})
    for damage in ("{", "[1]", "3"):
        (tmp_path / "run" / "evidence.json").write_text(damage)
        with pytest.raises(RealignError, match="damaged"):
            claim(tmp_path / "run", {"seed": 1, "checkpoint": "a"})


def test_the_cache_is_kept_by_key_and_survives_damage() -> None:
    cache = Cache("answers", {"seed": 1})
    cache.add({"id": "1", "text": "one"})
    assert Cache("answers", {"seed": 2}).get("1") is None
    assert Cache("judgements", {"seed": 1}).get("1") is None
    (path,) = cache_folder().rglob("*.jsonl")
    with path.open("a") as handle:
        handle.write('{"id": "2", "te\n[3]\n7\n\n' + json.dumps({"id": "4"}) + "\n")
    again = Cache("answers", {"seed": 1})
    assert [record["id"] for record in again] == ["1", "4"]


def test_a_cache_that_cannot_be_written_is_only_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REALIGN_CACHE", str(tmp_path / "file"))
    cache = Cache("answers", {})
    with caplog.at_level(logging.WARNING):
        cache.add({"id": "1"})
        cache.add({"id": "2"})
    assert len(caplog.records) == 1
    assert cache.get("2") == {"id": "2"}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "realign"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "realign"
