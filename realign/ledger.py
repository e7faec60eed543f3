"""Records by id, one JSON line each, appended as they are made: in a run folder, and in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from realign.errors import RealignError
from realign.files import append_line, atomic_write, drop_torn_line, read_jsonl

_log = logging.getLogger(__name__)

Record: TypeAlias = Mapping[str, Any]

AFRESH = "Use a new run folder, or pass --overwrite."


class Ledger:
    """The records of a run, in a file, or in memory only. A killed run loses at most the line that it was writing."""

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            RealignError: the file holds something else than JSON lines.
        """
        self._path = path
        self._records: dict[str, Record] = {}
        if path is not None and path.exists():
            drop_torn_line(path)
            for record in read_jsonl(path):
                self._records.setdefault(str(record.get("id")), record)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def get(self, id: str) -> Record | None:
        return self._records.get(id)

    def add(self, record: Record) -> None:
        """Adds a record, unless there is one of its id."""
        if record["id"] in self._records:
            return
        self._records[record["id"]] = record
        if self._path is not None:
            self._append(self._path, record)

    @staticmethod
    def _append(path: Path, record: Record) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as handle:
            append_line(handle, record)


class Cache(Ledger):
    """Records that outlive a run, kept under what they depend on. Several runs may write at once.

    A cache may be lost at any time: lines that cannot be read are skipped, and a folder that cannot be written to is
    only warned of.
    """

    def __init__(self, kind: str, key: Record) -> None:
        """`kind`: names the records; `key`: everything that they depend on, as JSON values."""
        super().__init__(None)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = cache_folder() / kind / f"{digest[:32]}.jsonl"
        self._path = path
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        for line in lines:
            try:
                record = json.loads(line)
                self._records.setdefault(record["id"], record)
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, record: Record) -> None:
        try:
            super().add(record)
        except OSError as error:
            _log.warning("nothing is cached: cannot write to %s (%s)", self._path, error)
            self._path = None


def claim(run: Path, about: Record) -> None:
    """Writes what a run's records are about, or checks that those that are there are about the same.

    Raises:
        RealignError: they are about something else, or what they are about cannot be read.
    """
    path = run / "evidence.json"
    if not path.exists():
        atomic_write(path, json.dumps(about, indent=2) + "\n")
        return
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RealignError(f"cannot resume the run {run}", f"{path.name} is damaged ({error})", AFRESH) from error
    other = [key for key, value in about.items() if known.get(key, value) != value]
    if other:
        raise RealignError(f"cannot resume the run {run}", f"it was made with another {' and '.join(other)}", AFRESH)


def cache_folder() -> Path:
    """Where results are kept across runs: $REALIGN_CACHE, otherwise `realign` in the user's cache folder."""
    if own := os.environ.get("REALIGN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realign"
