from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from realign.evidence import Cost
from realign.report.report import Report
from realign.report.terminal import show
from tests.report.examples import FLAGGED, NOT_EVALUATED, example, report


def shown(made: Report, *, width: int = 100, colour: bool = False) -> str:
    file = io.StringIO()
    show(made, Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None))
    return file.getvalue()


def test_the_verdict_comes_last() -> None:
    assert shown(report(), width=200).splitlines()[-1] == report().verdict.sentence


def test_the_table_and_what_belongs_to_it() -> None:
    text = shown(report(), width=200)
    header, *rows = text.splitlines()[3:6]
    assert " ".join(header.split()) == "detector context outcome score threshold competence control cost"
    assert " ".join(rows[0].split()) == "persona_probe plain not evaluated - - - - -"
    assert " ".join(rows[1].split()) == "freeform plain flagged 0.314 0.02 1.95 (>= 1.5) 0.014 12 s"
    assert "(0.22-0.41)" in text
    assert "22 misaligned of 72 answers, 71 scored, 70 coherent" in text
    assert "competence: sensitivity + specificity 1.95 (>= 1.5), sensitivity 0.97" in text
    assert "made for it: 72 answers, 132 judgements, 5,000 tokens; read: 0 tokens in 0 forward passes; 12 s" in text
    assert "AUROC 0.54" in text


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.22, 0.41), "(0.22-0.41)"),
        ((-0.1772, -0.16), "(-0.18 to -0.16)"),
        ((-0.0123, 1.314), "(-0.012 to 1.31)"),
        ((0.0, 0.0041), "(0-0.0041)"),
    ],
)
def test_intervals(interval: tuple[float, float], said: str) -> None:
    assert said in shown(report(replace(FLAGGED, interval=interval)), width=200)


@pytest.mark.parametrize(
    ("cost", "cells"),
    [
        (Cost(seconds=0.0432, forward_passes=5, tokens_read=12_345), ["0.043 s", "5 passes", "12k tokens"]),
        (Cost(48, 0, 900, 9.96, 3, 1100), ["10 s", "3 passes", "2,000 tokens"]),
        (Cost(72, 132, 5000, 1234.5), ["1,234 s", "5,000 tokens"]),
        (Cost(), ["0 s"]),
    ],
)
def test_the_cost_is_told_beside_the_score(cost: Cost, cells: list[str]) -> None:
    table = shown(report(replace(FLAGGED, cost=cost)), width=200).splitlines()[4 : 4 + len(cells)]
    assert [line.rstrip().split("  ")[-1].strip() for line in table] == cells


@pytest.mark.parametrize("width", [40, 80, 200])
def test_names_and_outcomes_can_be_read_at_any_width(width: int) -> None:
    assert "persona_probe" in shown(report(), width=width)
    assert "Question 3?" in shown(report(), width=width)


def test_the_three_worst_answers() -> None:
    text = shown(report())
    assert text.index("alignment 2, coherence 90") < text.index("Question 1?") < text.index("alignment 9")
    assert "The worst answers" not in shown(report(NOT_EVALUATED))


def test_model_output_is_neither_obeyed_by_rich_nor_by_the_terminal() -> None:
    said = "[bold red]loud[/] \x1b]0;title\x07 \x1b[2J [link=http://x]here[/link] [/nonsense]"
    text = shown(report(replace(FLAGGED, worst=(example(1, 1.0, text=said),))), width=200)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold red]loud[/]" in text
    assert "[link=http://x]here[/link] [/nonsense]" in text


def test_names_and_reasons_are_plain_text_too() -> None:
    made = report(replace(FLAGGED, detector="[red]x[/red]", reason="\x1b[31m[b]why"))
    text = shown(made, width=200)
    assert "[red]x[/red]" in text
    assert "[b]why" in text
    assert "\x1b" not in text


def test_a_figure_below_its_bar_stands_out() -> None:
    low = replace(FLAGGED, competence=(replace(FLAGGED.competence[0], value=1.0),))
    assert "\x1b[31m1 (>= 1.5)" in shown(report(low), width=200, colour=True)
    assert "\x1b[31m1.95" not in shown(report(), width=200, colour=True)


def test_long_answers_are_shortened() -> None:
    text = shown(report(replace(FLAGGED, worst=(example(1, 1.0, text="word " * 1000),))))
    assert "[...]" in text
    assert text.count("word") < 200


def test_without_a_judge_or_reference() -> None:
    text = shown(report(NOT_EVALUATED, judge=None, reference=None))
    assert "judge      none" in text
    assert "reference  " not in text
