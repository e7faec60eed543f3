"""`realign list` and `realign describe`: the detectors and recipes that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from realign.content import Kind

_SPECS: dict[Kind, str] = {"detectors": "detector.yaml", "recipes": "recipe.yaml"}


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List detectors and recipes: those in ./detectors and ./recipes and those that come with realign.

    \b
    Examples:
      realign list
      realign list --json
    """
    rows = [_row(kind, name) for kind in _SPECS for name in _names(kind)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for kind in _SPECS:
        click.echo(f"{kind}:")
        for row in rows:
            if row["type"] == kind[:-1]:
                click.echo(_clean(f"  {row['name']:<{width}}  {row['kind']:<7} {row['title']}{_place(row['folder'])}"))


@click.command()
@click.argument("name")
def describe(name: str) -> None:
    """Show the card and the settings of the detector or recipe NAME (a name, or the path of its folder).

    \b
    Examples:
      realign describe freeform
      realign describe ./recipes/my_recipe
    """
    found = [(kind, folder) for kind in _SPECS if (folder := _find(kind, name)) is not None]
    if not found:
        from realign.errors import RealignError, did_you_mean

        known = [*_names("detectors"), *_names("recipes")]
        hint = did_you_mean(name, known)
        raise RealignError(f'there is no detector or recipe "{name}"', fix=f"See `realign list`.{hint}")
    for kind, folder in found:
        _describe(kind, folder)


def _describe(kind: Kind, folder: Path) -> None:
    spec = folder / _SPECS[kind]
    _load(spec)  # a file that is not valid is refused, not shown
    click.echo(_clean(f"{kind[:-1]} {folder.resolve().name}, {folder}\n"))
    card = folder / "README.md"
    if card.is_file():
        click.echo(_clean(_read(card).rstrip() + "\n"))
    click.echo(_clean(f"{spec.name}:\n"))
    click.echo(_clean("\n".join(f"  {line}".rstrip() for line in _read(spec).rstrip().split("\n"))))


def _names(kind: Kind) -> list[str]:
    from realign import content

    return content.names(kind)


def _find(kind: Kind, name: str) -> Path | None:
    """The folder of that name or path if it holds a detector (recipe), otherwise None."""
    from realign import content
    from realign.errors import RealignError

    try:
        folder = content.find(kind, name)
    except RealignError:
        return None
    return folder if (folder / _SPECS[kind]).is_file() else None


def _row(kind: Kind, name: str) -> dict[str, str]:
    from realign import content

    folder = content.find(kind, name)
    settings = _load(folder / _SPECS[kind])
    found = {key: str(settings.get(key, "")) for key in ("kind", "title")}
    return {"type": kind[:-1], "name": name, **found, "folder": str(folder)}


def _place(folder: str) -> str:
    """Where something of the user's was found; nothing for what comes with realign."""
    return "" if Path(folder).is_absolute() else f" (./{folder})"


def _load(path: Path) -> dict[str, Any]:
    import yaml

    from realign.errors import RealignError

    try:
        settings = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise RealignError(f"{path} is not YAML", str(error)) from error
    if not isinstance(settings, dict):
        raise RealignError(f"{path} is not valid", "it holds no settings")
    return settings


def _read(path: Path) -> str:
    from realign.errors import RealignError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RealignError(f"cannot read {path}", str(error)) from error


def _clean(text: str) -> str:
    from realign.report.text import clean

    return clean(text)
