"""How sure a result is: sequential verdicts, intervals that respect clusters, grouped AUROC."""

from __future__ import annotations

from realign.statistics.auroc import grouped_auroc
from realign.statistics.intervals import (
    Estimate,
    Interval,
    clopper_pearson,
    cluster_bootstrap,
    paired_difference,
    wilson,
)
from realign.statistics.sequential import Decision, EValues, SequentialRate

__all__ = [
    "Decision",
    "EValues",
    "Estimate",
    "Interval",
    "SequentialRate",
    "clopper_pearson",
    "cluster_bootstrap",
    "grouped_auroc",
    "paired_difference",
    "wilson",
]
