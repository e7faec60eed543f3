from __future__ import annotations

import io

from rich.console import Console

from realign.calibration import Calibration, Family
from realign.report.calibration import show
from realign.threshold import fit
from tests.detect.stub import scored


def test_thresholds_and_what_has_none() -> None:
    threshold = fit(
        scored(0.0, 0.1, None), scored(0.52, 0.9), detector="shift", context="plain", hash="sha256:1", measures="score"
    )
    made = Calibration(
        realign="0",
        family=Family(architecture="llama", depth=2, width=32, reference="sha256:2"),
        seed=0,
        max_new_tokens=256,
        thresholds=(threshold,),
        left_out={"[b]probe[/b] (plain)": "it \x1b[31mcannot"},
    )
    file = io.StringIO()
    show(made, Console(file=file, width=200))
    header, row, left_out = file.getvalue().splitlines()
    assert " ".join(header.split()) == "detector context threshold safe misaligned AUROC (95 %)"
    low = f"{threshold.auroc.low:.2f}"
    assert " ".join(row.split()) == f"shift plain 0.31 2, at most 0.1 2, at least 0.52 1.00 ({low}-1.00)"
    assert left_out == "no threshold for [b]probe[/b] (plain): it \N{REPLACEMENT CHARACTER}[31mcannot"
