from __future__ import annotations

import io

from rich.console import Console

from realign.detect.detector import Look
from realign.report.live import Told, watching


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def look(answers: int = 36, expected: int = 144, rate: float | None = 0.3, context: str = "plain") -> Look:
    return Look("freeform", context, answers, expected, rate, (0.1, 0.5))


def test_the_line_tells_rate_interval_answers_and_time_left() -> None:
    lines: list[str] = []
    clock = Clock()
    told = Told(lines.append, clock)
    told.step("answers", 3, 36)
    assert lines == ["answers 3/36"]
    clock.now += 10
    told.look(look())
    assert lines[-1] == "freeform (plain)  30 % (10-50 %)  36 answers  about 30 s left"
    told.step("answers", 1, 36)
    assert lines[-1] == "freeform (plain)  30 % (10-50 %)  36 answers  about 30 s left  answers 1/36"


def test_time_counts_from_the_measurements_own_beginning() -> None:
    lines: list[str] = []
    clock = Clock()
    told = Told(lines.append, clock)
    clock.now += 10_000
    told.look(look(expected=36))
    clock.now += 36
    told.look(look(expected=72, context="training-format"))
    assert lines[-1].endswith("about 36 s left")


def test_long_times_and_rates_that_are_not_there() -> None:
    lines: list[str] = []
    clock = Clock()
    told = Told(lines.append, clock)
    clock.now += 60
    told.look(look(answers=10, expected=100, rate=None))
    assert lines[-1] == "freeform (plain)  no coherent answer  10 answers  about 9 min left"
    told.look(look(answers=10, expected=2000))
    assert lines[-1].endswith("about 3.3 h left")


def test_where_there_is_no_terminal_there_is_no_observer() -> None:
    with watching(Console(file=io.StringIO(), force_terminal=False)) as observer:
        assert observer is None


def test_on_a_terminal_the_line_is_shown_as_it_is() -> None:
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=True, width=100)) as observer:
        assert observer is not None
        observer.step("[red]answers[/red]\x1b[2J", 1, 2)
    assert "[red]answers[/red]" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()
