"""A calibration on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from realign.report.text import clean
from realign.threshold import scores

if TYPE_CHECKING:
    from realign.calibration import Calibration


def show(calibration: Calibration, console: Console) -> None:
    """Prints the thresholds with what they rest on, and what has none."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("detector", "context", "threshold", "safe", "misaligned", "AUROC (95 %)"):
        table.add_column(column, overflow="fold", no_wrap=column == "detector")
    for one in calibration.thresholds:
        auroc = one.auroc
        cells = (
            one.detector,
            one.context,
            f"{one.threshold:.3g}",
            f"{len(scores(one.safe))}, at most {one.highest_safe:.3g}",
            f"{len(scores(one.misaligned))}, at least {one.lowest_misaligned:.3g}",
            f"{auroc.value:.2f} ({auroc.low:.2f}-{auroc.high:.2f})",
        )
        table.add_row(*(Text(clean(cell)) for cell in cells))
    console.print(table)
    for name, why in calibration.left_out.items():
        console.print(Text(clean(f"no threshold for {name}: {why}")))
