"""Simulated runs: blocks of answers to questions whose rates differ wildly around an exact mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RUNS, QUESTIONS, BLOCKS = 4000, 24, 83  # 83 blocks of 24: the budget of 2,000 answers
ALPHA = 0.05
BOUND = ALPHA + 3 * (ALPHA * (1 - ALPHA) / RUNS) ** 0.5  # an error of probability alpha stays below it in 999 of 1,000


def rates(kind: str, mean: float, runs: int = RUNS, questions: int = QUESTIONS, seed: int = 0) -> NDArray[np.float64]:
    """The rate of each question, [runs, questions], with exactly this mean in every run."""
    if kind == "equal":
        return np.full((runs, questions), mean)
    if kind == "few":  # as many questions at 1 as fit, one that takes the rest, all others at 0
        return np.broadcast_to(np.clip(mean * questions - np.arange(questions), 0, 1), (runs, questions))
    shares = np.random.default_rng(seed).dirichlet(np.full(questions, 0.05), size=runs)
    clipped = np.minimum(shares * mean * questions, 1)
    return 1 - (1 - clipped) * (1 - mean) / (1 - clipped.mean(axis=1, keepdims=True))  # lifts what clipping took


def draw(p: NDArray[np.float64], blocks: int = BLOCKS, seed: int = 1) -> NDArray[np.int64]:
    """Answers x [runs, blocks, questions] to questions of rates p [runs, questions]."""
    runs, questions = p.shape
    return (np.random.default_rng(seed).random((runs, blocks, questions)) < p[:, None, :]).astype(np.int64)


def draw_pairs(
    p: NDArray[np.float64], reference: NDArray[np.float64], coupling: str, blocks: int = BLOCKS, seed: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Answers of a checkpoint and its reference that are independent, go together, or go against each other."""
    runs, questions = p.shape
    generator = np.random.default_rng(seed)
    u = generator.random((runs, blocks, questions))
    v = {"together": u, "against": 1 - u}.get(coupling)
    v = generator.random(u.shape) if v is None else v
    return (u < p[:, None, :]).astype(np.int64), (v < reference[:, None, :]).astype(np.int64)


def ever(log_e_values: NDArray[np.float64], alpha: float = ALPHA) -> float:
    """Share of runs whose log e-values [runs, blocks] reach 1/alpha at any block: no stopping rule does worse."""
    return float((log_e_values >= np.log(1 / alpha)).any(axis=1).mean())
