"""A report on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from realign.report.text import clean

if TYPE_CHECKING:
    from realign.detect.finding import Example, Figure, Finding
    from realign.evidence import Cost
    from realign.report.report import Report

_STYLES = {
    "flagged": "bold red",
    "misaligned": "bold red",
    "clear": "bold green",
    "undecided": "yellow",
    "inconclusive": "bold yellow",
    "not evaluated": "yellow",
}
_LONGEST_ANSWER = 600


def show(report: Report, console: Console) -> None:
    """Prints the findings, what is to be known about them, the worst answers, and the verdict last.

    Model output is printed as plain text: nothing in it is obeyed, neither by rich nor by the terminal.
    """
    console.print(_plain(f"checkpoint {report.checkpoint.source}", style="bold"))
    if report.reference is not None:
        console.print(_plain(f"reference  {report.reference.source}"))
    console.print(_plain(f"judge      {report.judge or 'none'}"))
    console.print(_table(report.findings))
    for finding in report.findings:
        _show_notes(finding, console)
    _show_worst(report.worst, console)
    outcome, _, rest = report.verdict.sentence.partition(":")
    sentence = Text.assemble((outcome, _STYLES[report.verdict.outcome]), clean(f":{rest}"))
    console.print(sentence, soft_wrap=True)  # one line, which scripts can look for


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("detector", "context", "outcome", "score", "threshold", "competence", "control", "cost"):
        table.add_column(column, overflow="fold", no_wrap=column in ("detector", "outcome"))
    for finding in findings:
        table.add_row(
            _plain(finding.detector),
            _plain(finding.context),
            Text(finding.outcome, _STYLES[finding.outcome]),
            _score(finding),
            _plain("-" if finding.threshold is None else _number(finding.threshold)),
            _figures(finding.competence),
            _figures(finding.controls),
            _plain("-" if finding.cost is None else "\n".join(_cost(finding.cost))),
        )
    return table


def _score(finding: Finding) -> Text:
    if finding.score is None:
        return Text("-")
    interval = "" if finding.interval is None else f"\n({_interval(*finding.interval)})"
    return _plain(f"{_number(finding.score)}{interval}")


def _cost(cost: Cost) -> list[str]:
    """The time, and what the model did in it; the notes below the table have the whole numbers."""
    tokens = cost.tokens + cost.tokens_read
    said = f"{tokens / 1000:,.0f}k" if tokens >= 10_000 else f"{tokens:,}"
    passes = [f"{cost.forward_passes:,} passes"] if cost.forward_passes else []
    return [_seconds(cost.seconds), *passes, *([f"{said} tokens"] if tokens else [])]


def _seconds(seconds: float) -> str:
    """A time with two digits that count: "12 s", "0.34 s"."""
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{float(f'{seconds:.2g}'):g} s"


def _figures(figures: Sequence[Figure]) -> Text:
    """The first figure; the notes below the table name all. Red if it is on the wrong side of its bar."""
    if not figures:
        return Text("-")
    first = figures[0]
    return _plain(f"{_number(first.value)}{_bar(first)}", "" if first.ok else "red")


def _bar(figure: Figure) -> str:
    if figure.at_least is not None:
        return f" (>= {_number(figure.at_least)})"
    return "" if figure.at_most is None else f" (<= {_number(figure.at_most)})"


def _interval(low: float, high: float) -> str:
    """Both ends with two digits that count after the point: "0.22-0.41", "0.0012-1.31", "-0.18 to -0.16"."""
    ends = [f"{round(end, 2) if abs(end) >= 1 else float(f'{end:.2g}'):g}" for end in (low, high)]
    return ("-" if low >= 0 else " to ").join(ends)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _show_notes(finding: Finding, console: Console) -> None:
    console.print()
    console.print(_plain(f"{finding.detector} ({finding.context})", style="bold"))
    lines = [finding.reason, *finding.notes]
    if finding.score is not None:
        lines.append(f"score: {finding.measures}")
    for name, figures in (("competence", finding.competence), ("control", finding.controls)):
        if figures:
            said = [f"{figure.what} {_number(figure.value)}{_bar(figure)}" for figure in figures]
            lines.append(f"{name}: {', '.join(said)}")
    if finding.cost is not None:
        cost = finding.cost
        lines.append(
            f"made for it: {cost.answers:,} answers, {cost.judgements:,} judgements, {cost.tokens:,} tokens; "
            f"read: {cost.tokens_read:,} tokens in {cost.forward_passes:,} forward passes; {_seconds(cost.seconds)}"
        )
    for line in lines:
        console.print(Padding(_plain(line), (0, 0, 0, 2), expand=False))


def _show_worst(worst: Sequence[Example], console: Console) -> None:
    if not worst:
        console.print()
        return
    console.print("\nThe worst answers", style="bold")
    for example in worst:
        scores = f"alignment {example.alignment:.0f}, coherence {example.coherence:.0f}  {example.answer_id}"
        console.print(Padding(_plain(scores, style="dim"), (1, 0, 0, 2), expand=False))
        console.print(Padding(_plain(f"Q: {_shortened(example.question)}"), (0, 0, 0, 2), expand=False))
        console.print(Padding(_plain(f"A: {_shortened(example.text)}"), (0, 0, 0, 2), expand=False))
    console.print()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_ANSWER else f"{text[:_LONGEST_ANSWER]} [...]"


def _plain(text: str, style: str = "") -> Text:
    """Text that rich prints as it is: no markup, no highlighting, no control characters."""
    return Text(clean(text), style)
