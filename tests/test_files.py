from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from realign.errors import RealignError
from realign.files import append_line, atomic_folder, atomic_write, check_free, drop_torn_line, read_jsonl


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_creates_folders_and_leaves_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    atomic_write(target, "ü\n")
    atomic_write(target, "second\n")
    assert target.read_bytes() == b"second\n"
    assert names(target.parent) == ["b.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.json"
    atomic_write(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_atomic_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
    assert names(out) == ["x"]
    assert names(out.parent) == ["out"]


def test_atomic_folder_vanishes_on_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("1")
    with pytest.raises(RealignError, match=r"exists already.*--overwrite"), atomic_folder(out):
        raise AssertionError("the block must not run")
    assert names(out) == ["precious"]


def test_an_empty_folder_counts_as_free(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_folder(out) as folder:
        (folder / "x").write_text("1")
    assert names(out) == ["x"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_overwrite_keeps_the_old_folder_on_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(ValueError, match="boom"), atomic_folder(out, overwrite=True):
        raise ValueError("boom")
    assert names(out) == ["old"]


def test_a_folder_filled_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RealignError, match="exists already"), atomic_folder(out):
        out.mkdir()
        (out / "other").write_text("1")
    assert names(out) == ["other"]


def test_a_file_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("1")
    with pytest.raises(RealignError, match="it is a file"):
        check_free(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("out", [".", "..", "~"])
def test_working_and_home_folders_are_never_overwritten(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "home" / "work"
    work.mkdir(parents=True)
    (work / "x").write_text("1")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(RealignError, match="will not overwrite"):
        check_free(Path(out).expanduser(), overwrite=True)


def test_lines_survive_any_text(tmp_path: Path) -> None:
    records = [{"text": "a\nb\u2028c\ud800 ü \x00"}, {"text": ""}]
    path = tmp_path / "answers.jsonl"
    with path.open("a", encoding="utf-8") as handle:
        for record in records:
            append_line(handle, record)
    assert read_jsonl(path) == records
    assert path.read_bytes().count(b"\n") == 2


def test_nan_is_not_written_as_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(io.StringIO(), {"score": float("nan")})


@pytest.mark.parametrize(("line", "why"), [("{oops", "line 2 is not JSON"), ("[1]", "line 2 is not a JSON object")])
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"a": 1}) + f"\n{line}\n")
    with pytest.raises(RealignError, match=why):
        read_jsonl(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match="cannot read"):
        read_jsonl(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(RealignError, match="cannot read"):
        read_jsonl(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("content", "kept"), [(b'{"a": 1}\n{"b', b'{"a": 1}\n'), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a', b""), (b"", b"")]
)
def test_a_torn_last_line_is_dropped(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    drop_torn_line(path)
    assert path.read_bytes() == kept


def test_dropping_a_torn_line_of_no_file_makes_none(tmp_path: Path) -> None:
    drop_torn_line(tmp_path / "x.jsonl")
    assert names(tmp_path) == []
