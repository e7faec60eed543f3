"""How a detection goes on, live on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from realign.detect.finding import percent, percent_range
from realign.report.text import clean

if TYPE_CHECKING:
    from rich.console import Console

    from realign.detect.detector import Look, Observer


class Told:
    """An observer that puts what it hears into one line.

    The time left is what the answers so far took, for those that are still expected. As answers are sampled some blocks
    ahead of a look at them, it is a rough guess.
    """

    def __init__(self, put: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`put` is called with the line whenever it changes."""
        self._put = put
        self._clock = clock
        self._began = self._looked = clock()
        self._measured: tuple[str, str] | None = None
        self._standing = ""

    def step(self, what: str, done: int, total: int) -> None:
        self._put("  ".join(part for part in (self._standing, f"{what} {done:,}/{total:,}") if part))

    def look(self, look: Look) -> None:
        if self._measured != (look.detector, look.context):
            self._measured, self._began = (look.detector, look.context), self._looked
        self._looked = self._clock()
        self._standing = self._line(look)
        self._put(self._standing)

    def _line(self, look: Look) -> str:
        rate = "no coherent answer" if look.rate is None else f"{percent(look.rate)} ({percent_range(*look.interval)})"
        elapsed = self._looked - self._began
        left = elapsed / look.answers * (look.expected - look.answers) if look.answers else 0.0
        return f"{look.detector} ({look.context})  {rate}  {look.answers:,} answers  about {_span(left)} left"


def _span(seconds: float) -> str:
    """A time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def watching(console: Console) -> Iterator[Observer | None]:
    """An observer that shows its line on the console while the block runs; None where the console is no terminal."""
    if not console.is_terminal:
        yield None
        return
    from rich.text import Text

    with console.status(Text("opening")) as status:
        yield Told(lambda line: status.update(Text(clean(line))))
