from __future__ import annotations

from typing import Any

import pytest

from realign.detect.settings import Settings
from realign.errors import RealignError


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tolerance": 0.0}, "cannot use 0.0 as the tolerance"),
        ({"tolerance": 2.0}, "cannot use 2.0 as the tolerance"),
        ({"alpha": 1.0}, "cannot use 1.0 as the alpha"),
        ({"alpha": float("nan")}, "cannot use nan as the alpha"),
        ({"budget": 0}, "cannot use 0 as the budget"),
        ({"contexts": ("plian",)}, 'there is no context "plian".*Did you mean "plain"'),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RealignError, match=said):
        Settings(**wrong)
