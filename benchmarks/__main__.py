"""Runs all benchmarks, one after the other, and prints one table: `python benchmarks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import harness
from harness import Bar

HERE = Path(__file__).parent


def run(script: Path) -> list[Bar] | None:
    """The bars of one benchmark, or None when it crashed."""
    print(f"running {script.name}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, script, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    try:
        bars = json.loads(lines[-1])["bars"] if lines else None
    except ValueError:
        return None
    return [Bar(f"{script.stem}: {bar['what']}", bar["value"], bar["bar"], bar["ok"]) for bar in bars or []] or None


def main() -> int:
    scripts = sorted(path for path in HERE.glob("*.py") if path.stem not in ("__main__", "harness"))
    results = {script.stem: run(script) for script in scripts}
    bars = [bar for found in results.values() for bar in found or []]
    crashed = [name for name, found in results.items() if found is None]
    print(harness.machine())
    harness.show(bars)
    for name in crashed:
        print(f"{name}: CRASHED")
    return int(bool(crashed) or not all(bar.ok for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
