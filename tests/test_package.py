from __future__ import annotations

import subprocess
import sys

import pytest

import realign


def test_public_names() -> None:
    assert set(realign.__all__) == {"__version__", "detect", "fix", "open"}
    assert set(realign.__all__) <= set(dir(realign))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = realign.nonsense


@pytest.mark.parametrize("first", ["pass", "import realign.detect.suite", "import realign.remedy.fix"])
def test_public_functions_can_be_called_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\nimport realign\nassert all(callable(getattr(realign, name)) for name in ('detect', 'fix', 'open'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_realign_is_light() -> None:
    code = "import sys, realign; assert not {'torch', 'numpy', 'click', 'realign.checkpoint'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
