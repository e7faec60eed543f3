"""Files that are whole or not there: writes go to a temporary name and are renamed; JSON lines, appended and read."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from realign.errors import RealignError

if TYPE_CHECKING:
    from pydantic import BaseModel

_Identified = TypeVar("_Identified", bound="BaseModel")


def _beside(path: Path) -> Path:
    """A free hidden name in the folder of `path`, hence on its file system, where a rename is atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def atomic_write(path: Path, text: str) -> None:
    """Write `text` as UTF-8: a reader, or a crash, sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that is in use; call it before long work, so that the user hears of it at once.

    Raises:
        RealignError: `out` is a file, or holds something and `overwrite` is off, or overwriting it would remove the
            folder that the user works in or their home.
    """
    if out.is_file():
        raise RealignError(f"cannot write to {out}", "it is a file", "Name a folder with -o.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise RealignError(f"cannot write to {out}", "it exists already", "Choose another folder, or pass --overwrite.")
    here = Path.cwd().resolve()
    if out.resolve() in {here, *here.parents, Path.home().resolve()}:
        raise RealignError(
            f"will not overwrite {out}", "it holds your working or home folder", "Choose another folder."
        )


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        RealignError: as `check_free`, before the block runs.
    """
    check_free(out, overwrite=overwrite)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(out.absolute())
    partial.mkdir()
    try:
        yield partial
        _move_into_place(partial, out, overwrite=overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, out: Path, *, overwrite: bool) -> None:
    check_free(out, overwrite=overwrite)  # again: somebody may have written there meanwhile
    if not out.exists():
        partial.rename(out)
        return
    old = _beside(out.absolute())
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def append_line(handle: TextIO, record: Mapping[str, Any]) -> None:
    """Append `record` as one JSON line and hand it to the operating system, so that a killed run keeps it.

    The line is ASCII: model output may hold anything, lone surrogates and odd line ends included.
    """
    handle.write(json.dumps(record, allow_nan=False) + "\n")
    handle.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; blank lines are skipped.

    Raises:
        RealignError: the file cannot be read, or a line (named by its number) is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RealignError(f"cannot read {path}", str(error), "Check its name and that it is UTF-8 text.") from error
    numbered = enumerate(lines, 1)
    return [_parse_line(path, number, line) for number, line in numbered if line.strip()]


def read_models(path: Path, model: type[_Identified], what: str) -> list[_Identified]:
    """The records of a JSON-lines file, each checked to be one of a pydantic model that has an `id`.

    Args:
        what: what one record is, for messages: "contrast pair".

    Raises:
        RealignError: as `read_jsonl`, or a record is none of the model, or two have one id.
    """
    from pydantic import ValidationError

    found: dict[str, _Identified] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        try:
            item = model.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RealignError(f"cannot read {path}", f"{what} {number}: {where}: {first['msg']}") from error
        name = str(item.id)  # type: ignore[attr-defined]
        if name in found:
            raise RealignError(f"cannot read {path}", f'two {what}s have the id "{name}"', "Rename one.")
        found[name] = item
    return list(found.values())


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        why = f"line {number} is not JSON ({error})"
        raise RealignError(f"cannot read {path}", why, "Mend or remove that line.") from error
    if not isinstance(record, dict):
        why = f"line {number} is not a JSON object"
        raise RealignError(f"cannot read {path}", why, 'Write {"key": value}, one a line.')
    return record


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its line end: what a killed run was writing. A missing file is left missing."""
    if not path.exists():
        return
    with path.open("rb+") as handle:
        content = handle.read()
        handle.truncate(content.rfind(b"\n") + 1)
