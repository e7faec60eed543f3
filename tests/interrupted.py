"""A run to be killed: `python -m tests.interrupted RUN` gathers all evidence of one run with stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path

from realign import evidence
from tests.stand_ins import RUBRIC, CountingJudge, Sampler, WeightlessCheckpoint, questions

BLOCKS = 12
PAUSE = 0.0005


def gather(run: Path, pause: float = 0.0) -> None:
    """Answers of checkpoint and reference, block by block, with their judgements; `evidence.sample` is stood in for."""
    checkpoint = WeightlessCheckpoint(reference=WeightlessCheckpoint("base"))
    made = evidence.Evidence(checkpoint, judge=CountingJudge(pause=pause), seed=7, run=run)  # type: ignore[arg-type]
    for block in range(BLOCKS):
        for reference in (False, True):
            answers = made.answers(questions(), "plain", [block], reference=reference)
            made.judgements(answers, RUBRIC)


if __name__ == "__main__":
    evidence.sample = Sampler(PAUSE)
    gather(Path(sys.argv[1]), PAUSE)
