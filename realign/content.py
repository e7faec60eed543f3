"""Where detectors and recipes are found: a path, then the user's ./detectors and ./recipes, then the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from realign.errors import RealignError, did_you_mean

Kind = Literal["detectors", "recipes"]

_SPECS: dict[Kind, str] = {"detectors": "detector.yaml", "recipes": "recipe.yaml"}
_PACKAGE = Path(__file__).parent


def _shipped_folder(kind: Kind) -> Path:
    """Inside the package in a wheel, beside the package in a checkout."""
    packaged = _PACKAGE / "_content" / kind
    return packaged if packaged.is_dir() else _PACKAGE.parent / kind


def _names(folder: Path, kind: Kind) -> list[str]:
    return sorted(spec.parent.name for spec in folder.glob(f"*/{_SPECS[kind]}"))


def shipped(kind: Kind) -> list[str]:
    """The names that come with realign, sorted."""
    return _names(_shipped_folder(kind), kind)


def names(kind: Kind) -> list[str]:
    """All names that `find` knows here, sorted: the user's and the shipped ones."""
    return sorted({*_names(Path(kind), kind), *shipped(kind)})


def find(kind: Kind, name: str) -> Path:
    """The folder of a detector or recipe, given by name or by path (of the folder, or of its .yaml file).

    Raises:
        RealignError: there is no such folder.
    """
    given = Path(name)
    if given.name == _SPECS[kind] and given.is_file():
        return given.parent
    if name != given.name or name == "..":  # "./x", "a/b", "x/": a path, not a name
        if given.is_dir():
            return given
        raise RealignError(f"there is no folder {name}", fix=f"Give the path of a folder that holds a {_SPECS[kind]}.")
    for folder in (Path(kind), _shipped_folder(kind)):
        if name and (folder / name).is_dir():
            return folder / name
    known = names(kind)
    raise RealignError(
        f"there is no {kind[:-1]} {name!r}",
        f"known {kind}: {', '.join(known) or 'none'}",
        f"Names are looked up in ./{kind} and among the shipped ones; a path works too.{did_you_mean(name, known)}",
    )
