"""What steering costs a decode step: the same steps of the same model, steered and plain, in one run.

The model is random, of the pocket family's size; the steps are those of sampling, with its cache. Printed is the time
of steered steps over that of plain ones, for each change in one layer and for a direction that is ablated in all.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import sampling
from harness import Bar

# Steered steps may take this much longer than plain ones, as a ratio.
BAR = 1.03


@dataclass(frozen=True)
class Case:
    """So many rows with prompts of so many tokens, continued by so many."""

    rows: int
    prompt: int
    steps: int
    bar: float = BAR


CASES = (Case(rows=1, prompt=64, steps=64), Case(rows=16, prompt=64, steps=64))
# Quick to run, to see that the benchmark works; its figures mean nothing.
SMOKE = (Case(rows=2, prompt=8, steps=4, bar=1e9),)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--repeats", type=int, default=25, help="runs of each, of which the median counts")
    parser.add_argument("--smoke", action="store_true", help="one tiny case, to see that the benchmark works")


def steerings() -> dict[str, list[Any]]:
    """Each with its name; nothing is steered so far that it would not be a model any more."""
    from realign.steering import Steering, ablate, add, clamp_latent

    vector, decoder = np.random.default_rng(0).standard_normal((2, sampling.WIDTH)) / sampling.WIDTH**0.5
    middle, band = [sampling.LAYERS // 2], range(sampling.LAYERS)
    return {
        "a vector added in one layer": [Steering(add(vector, 1.0), middle)],
        "a vector added to answers in one layer": [Steering(add(vector, 1.0), middle, "answer")],
        "a latent clamped in one layer": [Steering(clamp_latent(vector, 0.0, decoder, 1.0), middle)],
        "a direction ablated in all layers": [Steering(ablate(vector), band)],
    }


def decode(checkpoint: Any, case: Case) -> Callable[[], None]:
    """Steps of a batch that has read its prompts and drawn as many tokens as it may, so that all steps are alike."""
    import torch

    from realign.kv_cache import RepeatedCache

    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(sampling.VOCABULARY, (case.rows, case.prompt), generator=numbers)
    last = ids[:, -1].to(checkpoint.device)

    def run() -> None:
        with checkpoint.active() as model:
            for _ in range(case.steps):
                cache.read(model, last)
            if checkpoint.device.type == "cuda":
                torch.cuda.synchronize()

    with checkpoint.active() as model:
        cache = RepeatedCache(model, budget=65_536)
        cache.rebuild(model, [], [tuple(row) for row in ids.tolist()], case.steps)
    run()
    return run


def overheads(checkpoint: Any, case: Case, repeats: int) -> dict[str, float]:
    """For each steering, the median time of steered steps over that of plain ones."""
    from realign.steering import prompt_lengths, steered

    plain = decode(checkpoint, case)

    def steer(listed: list[Any]) -> Callable[[], None]:
        def run() -> None:
            with steered(checkpoint, listed), prompt_lengths([case.prompt]):
                plain()

        return run

    named = steerings()
    base, *times = harness.medians([plain, *(steer(listed) for listed in named.values())], repeats)
    return {name: seconds / base for name, seconds in zip(named, times, strict=True)}


def measure(options: argparse.Namespace) -> list[Bar]:
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sampling.open_model(Path(folder), options.device)
        for case in SMOKE if options.smoke else CASES:
            for name, value in overheads(checkpoint, case, options.repeats).items():
                what = f"{case.rows} rows, {name}: time of a step over that of a plain one"
                bars.append(Bar(what, value, case.bar, value <= case.bar))
    return bars


if __name__ == "__main__":
    harness.main("steering", measure, arguments)
