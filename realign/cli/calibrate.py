"""`realign calibrate`: fits the thresholds of white-box detectors to a family of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

_LISTS = ("--safe", "--misaligned", "--only", "--context")


class _Lists(click.Command):
    """A command whose list options take several values at once, too: `--safe A B C`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeated(args)))


def _repeated(arguments: Sequence[str]) -> Iterator[str]:
    """`--safe A B` as `--safe A --safe B`."""
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            values = int(bool(value))
        else:
            if option in _LISTS and values:
                yield option
            values += 1
        yield argument


@click.command(cls=_Lists)
@click.option(
    "--safe", multiple=True, required=True, metavar="CKPT ...", help="Checkpoints that are not misaligned, two or more."
)
@click.option(
    "--misaligned", multiple=True, required=True, metavar="CKPT ...", help="Checkpoints that are, two or more."
)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the calibration goes, JSON.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option(
    "--only",
    multiple=True,
    metavar="DETECTOR ...",
    help="Calibrate only these detectors, names or folders.  [default: all white-box detectors]",
)
@click.option("--reference", help="The model before the fine-tunes. An adapter has one anyway: its base.")
@click.option("--base", help="The base of the adapters, where their configs do not name it rightly.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="NAME ...",
    help="How questions are put: plain or training-format.  [default: plain]",
)
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Most tokens of an answer.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--allow-pickle", is_flag=True, help="Also read pickle weights (tensors only).")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoints.")
@click.option("--json", "as_json", is_flag=True, help="Print the calibration as JSON, and nothing else, to stdout.")
def calibrate(
    *,
    safe: tuple[str, ...],
    misaligned: tuple[str, ...],
    out: Path,
    overwrite: bool,
    only: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Fit the thresholds of white-box detectors to checkpoints of which you know what they are.

    All are fine-tunes of one model, and the calibration is for other fine-tunes of it. Take checkpoints that differ in
    what the next one may differ in (data, seeds, doses), and none that you want to examine: half a dozen of each kind
    say much more than two. A threshold lies midway between the highest safe and the lowest misaligned score; there is
    none for a detector that hardly tells the two kinds apart (AUROC below 0.9).

    \b
    Examples:
      realign calibrate --safe chat/ good1/ good2/ --misaligned bad1/ bad2/ bad3/ -o calibration.json
      realign calibrate --safe A B --misaligned C D --reference before/ --only persona_shift -o calibration.json
      realign detect ./my-adapter --calibration calibration.json

    Exit codes: 0 calibrated, 2 wrong usage or input, or no detector can be calibrated, 70 crash.
    """
    from rich.console import Console

    from realign.calibration import check_output
    from realign.cli.detect import quieten
    from realign.detect.fitting import calibrate as fit
    from realign.detect.settings import Settings
    from realign.detect.suite import Silent, select
    from realign.report import calibration as view
    from realign.report.live import watching
    from realign.sampling import SamplingSettings

    check_output(out, overwrite=overwrite)
    sampling = SamplingSettings(max_new_tokens=options.pop("max_new_tokens"))
    settings = Settings(seed=options.pop("seed"), contexts=options.pop("contexts") or None, sampling=sampling)
    detectors = [detector for detector in select(only) if only or detector.advisory]
    quieten()
    with watching(Console(stderr=True)) as live:
        observer = live or Silent()
        made = fit(safe, misaligned, detectors=detectors, settings=settings, observer=observer, **options)
    made.save(out, overwrite=overwrite)
    if as_json:
        click.echo(made.model_dump_json(indent=2))
    else:
        view.show(made, Console())
        click.echo(f"Use it with --calibration {out}.")
