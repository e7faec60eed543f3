"""How long `realign --help` takes: at most 0.3 s, and at most 1.5 times `python -c "import click"` plus 0.1 s."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import harness
from harness import Bar


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=15)


def measure(options: argparse.Namespace) -> list[Bar]:
    realign = Path(sys.executable).with_name("realign")

    def ours() -> None:
        subprocess.run([realign, "--help"], stdout=subprocess.DEVNULL, check=True)

    def click() -> None:
        subprocess.run([sys.executable, "-c", "import click"], check=True)

    seconds, peer = harness.medians([ours, click], options.repeats)
    beyond = seconds - 1.5 * peer
    return [
        Bar("realign --help, seconds", seconds, 0.3, seconds <= 0.3),
        Bar("realign --help minus 1.5 times importing click, seconds", beyond, 0.1, beyond <= 0.1),
    ]


if __name__ == "__main__":
    harness.main("startup", measure, arguments)
