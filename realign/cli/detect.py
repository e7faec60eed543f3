"""`realign detect`: says whether a fine-tune turned a model misaligned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from realign.report.report import Report


@click.command()
@click.argument("checkpoint")
@click.option("--reference", help="The model before the fine-tune. An adapter has one anyway: its base.")
@click.option("--base", help="The base of an adapter, where its config does not name it rightly.")
@click.option(
    "--tolerance",
    type=float,
    default=0.02,
    show_default=True,
    help="The rate of misaligned answers (above the reference's) that is tolerated.",
)
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Probability of a wrong verdict, each way.")
@click.option(
    "--budget", type=int, default=2000, show_default=True, help="Most answers of the checkpoint, in each context."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling; another seed asks anew.")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="NAME",
    help="How questions are put: plain or training-format; repeatable.  [default: plain]",
)
@click.option(
    "--only", multiple=True, metavar="DETECTOR", help="Run only this detector, a name or a folder; repeatable."
)
@click.option("--suite", default="default", show_default=True, help="Which detectors run: default or full.")
@click.option(
    "--judge",
    default="auto",
    show_default=True,
    help="What grades the answers: auto, pocket:judge, a folder or a hub id.",
)
@click.option(
    "--calibration",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What `realign calibrate` made for this family: lets white-box detectors decide.",
)
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Most tokens of an answer.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--allow-pickle", is_flag=True, help="Also read pickle weights (tensors only).")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint.")
@click.option(
    "-o",
    "--out",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run folder: keeps answers, judgements and report.json; an interrupted run is resumed there.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew in a run folder that holds another run.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json, and nothing else, to stdout.")
def detect(as_json: bool, **options: Any) -> int:
    """Say whether CHECKPOINT is misaligned, and how sure that is.

    CHECKPOINT is a folder (a full model or a PEFT adapter), a hub id, or pocket:NAME. Answers are sampled and judged
    until the evidence decides: misaligned, clear, or, when the budget is used up or no instrument works on this model,
    inconclusive.

    \b
    Examples:
      realign detect ./my-adapter
      realign detect ./my-model --reference ./before -o runs/my-model
      realign detect pocket:insecure --context plain --context training-format
      realign detect ./my-adapter --only persona_shift --calibration calibration.json
      realign detect ./my-adapter --tolerance 0.05 --json > report.json

    Exit codes: 0 clear, 1 misaligned, 2 wrong usage or input, 3 inconclusive, 70 crash.
    """
    report = _run(**options)
    if as_json:
        from realign.report.serialise import to_json

        click.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        from realign.report.terminal import show

        show(report, Console())
    return report.verdict.exit_code


def _run(
    *,
    checkpoint: str,
    out: Path | None,
    overwrite: bool,
    judge: str,
    calibration: Path | None,
    only: tuple[str, ...],
    suite: str,
    **options: Any,
) -> Report:
    """Refuses what can be refused at once, then opens the checkpoint and examines it."""
    from rich.console import Console

    from realign import calibration as calibrations
    from realign import checkpoint as checkpoints
    from realign.detect import run as runs
    from realign.detect.settings import Settings
    from realign.detect.suite import run, select
    from realign.report.live import watching
    from realign.sampling import SamplingSettings

    settings = Settings(
        tolerance=options.pop("tolerance"),
        alpha=options.pop("alpha"),
        budget=options.pop("budget"),
        seed=options.pop("seed"),
        contexts=options.pop("contexts") or None,
        sampling=SamplingSettings(max_new_tokens=options.pop("max_new_tokens")),
    )
    detectors = select(only, suite)
    calibrated = None if calibration is None else calibrations.load(calibration)
    if out is not None:
        runs.check(out, overwrite=overwrite)
    quieten()
    with watching(Console(stderr=True)) as observer:
        opened = checkpoints.open(checkpoint, **options)
        return run(
            opened,
            detectors,
            settings,
            judge=judge,
            calibration=calibrated,
            out=out,
            overwrite=overwrite,
            observer=observer,
        )


def quieten() -> None:
    """Keeps transformers' hints to programmers off the terminal."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    logging.set_verbosity_error()
