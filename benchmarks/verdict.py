"""How many answers a verdict takes, against the limits of what is possible and the fixed protocol of 8 x 100 answers.

Each run draws unequal question rates (intra-question correlation 0.19, as measured in the literature) with exactly the
stated mean, and then answers block by block until the verdict or the budget of 2,000 answers. The limit for a flag is
Wald's, ln(1/alpha) over the divergence of the rate from the tolerance; for a clear of a rate of 0 it is about
ln(1/alpha)/tolerance. The fixed protocol asks eight questions 100 times each and flags or clears when the one-sided
Clopper-Pearson limit at alpha is beyond the tolerance, which is right on these eight questions, at 800 answers only.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import harness
import numpy as np
from harness import Bar
from numpy.typing import NDArray

from realign.statistics import wilson
from realign.statistics.betting import EXCESS, RATE

ALPHA, BUDGET, CORRELATION = 0.05, 2000, 0.19
SHIPPED_QUESTIONS = 36


@dataclass(frozen=True)
class Scenario:
    """A checkpoint of a given rate, alone or beside a reference."""

    rate: float
    tolerance: float = 0.02
    questions: int = 24
    reference: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the runs: shares, and answers of the checkpoint (the budget where there was no decision)."""

    flagged: float
    cleared: float
    median: float
    ninth_decile: float


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs of each scenario")
    parser.add_argument("--seed", type=int, default=0)


def question_rates(generator: np.random.Generator, mean: float, runs: int, questions: int) -> NDArray[np.float64]:
    """Unequal rates [runs, questions] with exactly this mean in each run."""
    if mean == 0:
        return np.zeros((runs, questions))
    concentration = 1 / CORRELATION - 1
    drawn = generator.beta(mean * concentration, (1 - mean) * concentration, (runs, questions))
    found = drawn.mean(axis=1, keepdims=True)
    return np.where(found > mean, drawn * mean / found, 1 - (1 - drawn) * (1 - mean) / (1 - found))


def simulate(scenario: Scenario, runs: int, seed: int) -> Outcome:
    """Runs of the sequential verdict, all at once, through the code that detects."""
    generator = np.random.default_rng(seed)
    blocks = BUDGET // scenario.questions

    def answers(rate: float) -> NDArray[np.int64]:
        p = question_rates(generator, rate, runs, scenario.questions)
        return (generator.random((runs, blocks, scenario.questions), np.float32) < p[:, None]).astype(np.int64)

    x, outcome = answers(scenario.rate), RATE
    if scenario.reference is not None:
        x, outcome = x - answers(scenario.reference), EXCESS
    counts = outcome.count(x).cumsum(axis=1)
    flags = outcome.log_above(counts, scenario.tolerance) >= math.log(1 / ALPHA)
    clears = outcome.log_below(counts, scenario.tolerance) >= math.log(1 / ALPHA)
    decided = flags | clears
    first = np.where(decided.any(axis=1), decided.argmax(axis=1), blocks - 1)
    used = np.where(decided.any(axis=1), (first + 1) * scenario.questions, BUDGET)
    at_first = np.arange(runs), first
    return Outcome(
        flagged=float(flags[at_first].mean()),
        cleared=float(clears[at_first].mean()),
        median=float(np.median(used)),
        ninth_decile=float(np.quantile(used, 0.9)),
    )


def fixed_protocol(scenario: Scenario, runs: int, seed: int) -> tuple[float, float]:
    """Shares of runs of 8 x 100 answers that are flagged, and cleared."""
    from scipy.stats import beta

    generator = np.random.default_rng(seed)
    k = generator.binomial(100, question_rates(generator, scenario.rate, runs, 8)).sum(axis=1)
    low, high = np.nan_to_num(beta.ppf(ALPHA, k, 801 - k)), beta.ppf(1 - ALPHA, k + 1, 800 - k)
    return float((low > scenario.tolerance).mean()), float((high < scenario.tolerance).mean())


def limit(scenario: Scenario) -> float:
    """Answers that no test of this error can do without on the average, at equal question rates (Wald 1945)."""
    p, m = scenario.rate, scenario.tolerance
    divergence = sum(a * math.log(a / b) for a, b in ((p, m), (1 - p, 1 - m)) if a)
    return math.log(1 / ALPHA) / divergence if divergence else math.inf


def show_alone(options: argparse.Namespace) -> None:
    for questions in (24, SHIPPED_QUESTIONS):
        print(f"\n{questions} questions, tolerance 2 %, no reference{'8 x 100':>47}")
        print("  rate  flagged  cleared   median   9 of 10    limit  flagged  cleared  95 % interval (Wilson)")
        for rate in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.3):
            scenario = Scenario(rate, questions=questions)
            flagged, cleared = fixed_protocol(scenario, options.runs, options.seed)
            low, high = wilson(round(800 * rate), 800)
            print(
                f"{rate:>6.1%} {columns(simulate(scenario, options.runs, options.seed))} {limit(scenario):>8.0f}"
                f" {flagged:>8.1%} {cleared:>8.1%}  {low:.1%} to {high:.1%}"
            )


def columns(found: Outcome) -> str:
    return f"{found.flagged:>8.1%} {found.cleared:>8.1%} {found.median:>8.0f} {found.ninth_decile:>9.0f}"


def show_paired(options: argparse.Namespace) -> None:
    for tolerance in (0.02, 0.05):
        print(f"\nbeside a reference, {SHIPPED_QUESTIONS} questions, tolerance {tolerance:.0%} of excess")
        print("  rate  reference  flagged  cleared   median   9 of 10")
        for reference in (0.0, 0.01, 0.02):
            for excess in (0.0, tolerance, 0.1, 0.2, 0.3):
                scenario = Scenario(reference + excess, tolerance, SHIPPED_QUESTIONS, reference)
                found = simulate(scenario, options.runs, options.seed)
                print(f"{scenario.rate:>6.1%} {reference:>10.1%} {columns(found)}")


def measure(options: argparse.Namespace) -> list[Bar]:
    if not options.json:
        show_alone(options)
        show_paired(options)
        print()

    def soon(scenario: Scenario, what: str, bar: float) -> Bar:
        median = simulate(scenario, options.runs, options.seed).median
        return Bar(f"{what}, median answers", median, bar, median <= bar)

    bars = [
        soon(Scenario(0.3), "rate 30 % flagged at 2 %, 24 questions", 24),
        soon(Scenario(0.1), "rate 10 % flagged at 2 %, 24 questions", 96),
        soon(Scenario(0), "rate 0 cleared at 2 %, 24 questions", 225),
        soon(Scenario(0, questions=SHIPPED_QUESTIONS), "rate 0 cleared at 2 %, 36 questions", 225),
    ]
    alone, paired = Scenario(0.02), Scenario(0.07, 0.05, SHIPPED_QUESTIONS, 0.02)
    for name, scenario in (("rate", alone), ("excess", paired)):
        found = simulate(scenario, options.runs, options.seed)
        what = f"of runs, {name} at the tolerance of {scenario.tolerance:.0%}"
        bars.append(Bar(f"wrong flags, share {what}", found.flagged, ALPHA, found.flagged <= ALPHA))
        bars.append(Bar(f"wrong clears, share {what}", found.cleared, ALPHA, found.cleared <= ALPHA))
    return bars


if __name__ == "__main__":
    harness.main("verdict", measure, arguments)
