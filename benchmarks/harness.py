"""What all benchmarks share: bars, the machine's name, timing against a peer in one run, the JSON at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import NoReturn


@dataclass(frozen=True)
class Bar:
    """One claim: what was measured, its value, the bar it is held to, and whether it meets it."""

    what: str
    value: float
    bar: float
    ok: bool


def machine() -> str:
    """What the figures depend on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, "
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def medians(runs: Sequence[Callable[[], object]], repeats: int = 5) -> list[float]:
    """Median seconds of each, interleaved so that a slow moment of the machine hits all; one run each to warm up."""
    for run in runs:
        run()
    rounds = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def ratio(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of the peer over median seconds of ours: how many times faster we are."""
    mine, theirs = medians([ours, peer], repeats)
    return theirs / mine


def show(bars: Sequence[Bar]) -> None:
    """The bars as a table."""
    width = max((len(bar.what) for bar in bars), default=4)
    print(f"{'what':<{width}}  {'value':>10}  {'bar':>10}")
    for bar in bars:
        print(f"{bar.what:<{width}}  {bar.value:>10.3f}  {bar.bar:>10.3f}  {'ok' if bar.ok else 'MISSED'}")


def main(
    name: str,
    measure: Callable[[argparse.Namespace], list[Bar]],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> NoReturn:
    """Run a benchmark from the command line; it ends in 1 when a bar is missed.

    Args:
        name: its name, as in `benchmarks/NAME.py`.
        measure: takes the parsed options, gives the bars.
        arguments: adds options of its own to the parser.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", action="store_true", help="no table, only the line of JSON at the end")
    if arguments:
        arguments(parser)
    options = parser.parse_args()
    bars = measure(options)
    if not options.json:
        show(bars)
    line = {"benchmark": name, "machine": machine(), "bars": [asdict(bar) for bar in bars]}
    print(json.dumps(line, allow_nan=False), flush=True)
    sys.exit(not all(bar.ok for bar in bars))
