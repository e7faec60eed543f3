"""`realign fix`: puts a misaligned model right, and proves it by measuring before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from realign.detect.detector import Look, Observer
    from realign.remedy.certificate import Measured
    from realign.remedy.fix import Fixed
    from realign.remedy.recipe import Preview
    from realign.report.report import Report

_LONGEST = 1200  # characters of a row that are shown


@click.command()
@click.argument("checkpoint")
@click.option("--recipe", required=True, metavar="NAME|PATH", help="What cures it: see `realign list`.")
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Samples to use in place of the recipe's own, JSON lines.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Folder for the repaired checkpoint and its certificate.json.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is in OUT.")
@click.option("--force", is_flag=True, help="Repair a checkpoint that is clear already, too.")
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
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling and the training.")
@click.option(
    "--judge",
    default="auto",
    show_default=True,
    help="What grades the answers: auto, pocket:judge, a folder or a hub id.",
)
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Most tokens of an answer.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--allow-pickle", is_flag=True, help="Also read pickle weights (tensors only).")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, to stdout.")
def fix(as_json: bool, max_new_tokens: int, **options: Any) -> int:
    """Put CHECKPOINT right by a recipe, and prove it by measuring before and after.

    The repaired checkpoint is saved, read again and examined as it was before, with other random answers, on plain
    questions and on questions that look like training data. An adapter whose training is continued is saved as an
    adapter; what is steered is saved as a full model. A checkpoint that is clear already is left alone.

    \b
    Examples:
      realign fix ./my-adapter --recipe good_code_100 -o ./fixed
      realign fix ./my-model --reference ./before --recipe good_code_100 -o ./fixed
      realign fix ./my-adapter --recipe good_code_100 --data my_samples.jsonl -o ./fixed
      realign fix pocket:insecure --recipe good_code_100 -o ./fixed --tolerance 0.05

    Exit codes: 0 clear, 1 still misaligned, 2 wrong usage or input, 3 inconclusive, 70 crash.
    """
    from rich.console import Console

    from realign.remedy.fix import fix as repair
    from realign.report.live import watching
    from realign.sampling import SamplingSettings

    sampling = SamplingSettings(max_new_tokens=max_new_tokens)
    progress = Console(stderr=True)
    with watching(progress) as live:
        fixed = repair(onlooker=_Narrator(progress, live), sampling=sampling, **options)
    if as_json:
        from realign.report.serialise import to_dict

        certificate = fixed.certificate and fixed.certificate.to_dict()
        result = {"path": fixed.path and str(fixed.path), "certificate": certificate, "before": to_dict(fixed.before)}
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(fixed, Console())
    return fixed.exit_code


class _Narrator:
    """Prints how a repair goes on: its parts as they come, and what changes all the time on the live line."""

    def __init__(self, console: Console, live: Observer | None) -> None:
        self._console = console
        self._live = live

    def step(self, what: str, done: int, total: int) -> None:
        if self._live is not None:
            self._live.step(what, done, total)

    def look(self, look: Look) -> None:
        if self._live is not None:
            self._live.look(look)

    def begin(self, what: str) -> None:
        _print(self._console, what, "bold")

    def before(self, report: Report) -> None:
        _print(self._console, f"  {report.verdict.sentence}")

    def preview(self, preview: Preview) -> None:
        counts = f"{preview.rows:,} rows, {preview.supervised:,} supervised tokens, {preview.steps:,} steps"
        _print(self._console, f"  {counts}\n  the row {preview.sample}; what stands between >>> and <<< is learnt:")
        learnt = _text(f">>>{preview.learnt[:_LONGEST]}<<<", "green")
        self._console.print(_text(preview.given[-_LONGEST:], "dim") + learnt, soft_wrap=True)


def _show(fixed: Fixed, console: Console) -> None:
    """Prints before and after, where the repaired checkpoint is, and in the last line what came of it."""
    certificate = fixed.certificate
    if certificate is None:
        _print(console, fixed.before.verdict.sentence)
        _print(console, "already clear: nothing was changed (--force repairs it anyway)", "bold green")
        return
    for change in certificate.changes:
        _print(console, f"{change.detector}, {change.context}", "bold")
        _print(console, f"  before  {_told(change.before)}")
        _print(console, f"  after   {_told(change.after)}")
    _print(console, f"saved to {fixed.path}, with certificate.json")
    if certificate.passed:
        _print(console, "repaired: clear in every context", "bold green")
    else:
        _print(console, f"not repaired ({certificate.outcome}): {certificate.left}", "bold red")


def _told(measured: Measured) -> str:
    """ "31 % (22-41 %), 72 answers, 72 scored, 70 coherent, reference 1 %: flagged"."""
    from realign.detect.finding import percent, percent_range

    counts, reference = measured.counts, measured.reference
    if measured.rate is None or measured.interval is None or counts is None:
        return f"{measured.outcome}: {measured.reason}"
    said = f"{percent(measured.rate)} ({percent_range(*measured.interval)}), {counts.answers:,} answers, "
    said += f"{counts.scored:,} scored, {counts.coherent:,} coherent"
    if reference is not None and reference.rate is not None:
        said += f", reference {percent(reference.rate)}"
    return f"{said}: {measured.outcome}"


def _print(console: Console, text: str, style: str = "") -> None:
    """Prints text as it is: no markup is read, no control character passes, no line is broken."""
    console.print(_text(text, style), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    from realign.report.text import clean

    return Text(clean(text), style)
