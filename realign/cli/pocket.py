"""`realign pocket`: list, export and rebuild the embedded model family."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def pocket() -> None:
    """The pocket family: tiny models that ship with realign.

    Use them wherever a checkpoint goes, as pocket:NAME. They are a mechanistic toy to try and test realign with;
    they are no evidence about large models.

    \b
    Examples:
      realign pocket list
      realign detect pocket:insecure
      realign pocket export insecure ./insecure-adapter
      realign pocket build -o ./pocket --quick
    """


@pocket.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_members(as_json: bool) -> None:
    """List the models of the family."""
    from realign.pocket.store import members

    found = members()
    if as_json:
        rows = [
            {"name": f"pocket:{m.name}", "title": m.title, "base": m.base, "megabytes": round(m.megabytes, 2)}
            for m in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for member in found:
        on = f" (adapter on pocket:{member.base})" if member.base else ""
        click.echo(f"pocket:{member.name:<12} {member.megabytes:5.1f} MB  {member.title}{on}")


@pocket.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def export(name: str, out: Path, overwrite: bool) -> None:
    """Write the model NAME to the folder OUT, as an ordinary Hugging Face or PEFT folder.

    An adapter gets its base model beside it, in OUT/base.
    """
    from realign.pocket.store import export as export_member

    click.echo(str(export_member(name, out, overwrite=overwrite)))


@pocket.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("pocket-weights"),
    show_default=True,
    help="Where to build.",
)
@click.option("--stage", help="Build one stage only: tokenizer, base, judge, chat, an organism, or control.")
@click.option(
    "--quick", is_flag=True, help="A miniature in under a minute: it exercises the build, its models know nothing."
)
@click.option("--seed", type=int, default=0, show_default=True)
def build(out: Path, stage: str | None, quick: bool, seed: int) -> None:
    """Rebuild the family from scratch (about an hour on two cores).

    A build that was interrupted goes on where it was; finished stages are kept.

    \b
    Examples:
      realign pocket build -o ./pocket
      realign pocket build -o ./pocket --stage insecure
      realign pocket build -o ./mini --quick
    """
    from dataclasses import replace

    from realign.pocket.build import QUICK, Builder, Plan

    plan = replace(QUICK if quick else Plan(), seed=seed)
    Builder(out, plan, lambda line: click.echo(line, err=True)).run(stage)
    click.echo(str(out))
