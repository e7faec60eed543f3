"""`realign sae`: trains a sparse autoencoder on a model's own activations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from realign.sae_training import Trained


@click.group()
def sae() -> None:
    """Sparse autoencoders (SAEs): what the detector persona_latents looks through.

    They need sae_lens: pip install 'realign[sae]'.

    \b
    Example:
      realign sae train ./base --layer 12 --texts texts.jsonl -o ./sae
    """


@sae.command()
@click.argument("checkpoint")
@click.option("--layer", type=int, required=True, help="The layer whose output it reads, counted from 0.")
@click.option(
    "--texts",
    required=True,
    metavar="F",
    type=click.Path(path_type=Path),
    help='What the model reads: JSON lines, {"text"} or dialogues as for `realign fix`; or a text a line.',
)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for the SAE; an interrupted training is resumed there.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is in DIR, an unfinished training too.")
@click.option("--latents", type=int, help="How many it gets.  [default: eight times the model's width]")
@click.option("--active", type=int, default=32, show_default=True, help="Latents that are active at a time.")
@click.option(
    "--tokens", type=int, default=4_000_000, show_default=True, help="Tokens to learn from; texts are reread."
)
@click.option("--batch", type=int, default=2048, show_default=True, help="Tokens a step.")
@click.option("--rate", type=float, default=3e-4, show_default=True, help="The learning rate.")
@click.option(
    "--architecture",
    default="batchtopk",
    show_default=True,
    help="batchtopk (active in the mean) or topk (active at each token).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first weights and the order of tokens.")
@click.option("--base", help="The base of an adapter, where its config does not name it rightly.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="Of the model: auto, float32, bfloat16 or float16.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--allow-pickle", is_flag=True, help="Also read pickle weights (tensors only).")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, to stdout.")
def train(as_json: bool, **options: Any) -> None:
    """Train an SAE on what a layer of CHECKPOINT makes of texts, and save it in sae_lens' format.

    Train it on the model before the fine-tune, on texts like those that it will read: dialogues in the chat template,
    of many topics. The middle of a model is where personas are found. A share of the texts is held out to measure how
    much of the variance of the activations the SAE explains; detectors want at least 0.6.

    \b
    Examples:
      realign sae train ./base --layer 12 --texts texts.jsonl -o ./sae
      realign sae train ./base --layer 12 --texts texts.jsonl -o ./sae --latents 32768 --tokens 100000000
      realign sae train pocket:chat --layer 3 --texts texts.txt -o ./sae --json
    """
    trained = _run(**options)
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps({**asdict(trained), "path": str(trained.path)}, indent=2, allow_nan=False))
    else:
        _show(trained)


def _run(*, checkpoint: str, texts: Path, out: Path, overwrite: bool, **options: Any) -> Trained:
    """Refuses what can be refused at once, then opens the checkpoint and trains."""
    from rich.console import Console

    from realign import checkpoint as checkpoints
    from realign import sae_training
    from realign.report.live import watching

    chosen = ("layer", "latents", "active", "tokens", "batch", "rate", "architecture", "seed")
    plan = sae_training.Plan(**{name: options.pop(name) for name in chosen})
    sae_training.check_out(out, overwrite=overwrite)
    with watching(Console(stderr=True)) as observer:
        told = {} if observer is None else {"on_progress": observer.step}
        opened = checkpoints.open(checkpoint, **options)
        return sae_training.train(opened, texts, plan, out, overwrite=overwrite, **told)


def _show(trained: Trained) -> None:
    from realign.sae import FAITHFUL_FROM

    click.echo(
        f"layer {trained.layer}, {trained.latents:,} latents, {trained.active:.1f} active at a time, "
        f"{trained.dead:,} dead, {trained.tokens:,} tokens"
    )
    click.echo(f"explained variance on texts held out: {trained.explained_variance:.3f}")
    if trained.explained_variance < FAITHFUL_FROM:
        click.echo(
            f"Detectors will not believe it: they want {FAITHFUL_FROM}. Train it on more tokens, or with more active.",
            err=True,
        )
    click.echo(f"saved to {trained.path}")
