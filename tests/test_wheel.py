"""The built wheel, installed outside the checkout: it is complete, pollutes nothing, and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from realign import content

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel; its dependencies are lent by the running environment.

    A .pth line at the end of the search path lends them, so that nothing large is installed twice; links to a checkout
    are not followed from there, and a test makes sure of it.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    ours = sysconfig.get_path("purelib")
    theirs = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
        text=True,
    )
    (theirs / "lent.pth").write_text(f"{ours}\n", encoding="utf-8")
    return Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of the environment in an empty folder."""

    def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(installed / program), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_only_realign(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"realign"}


def test_the_wheel_holds_all_content_and_the_licence(wheel: Path) -> None:
    found = set(names(wheel))
    for folder in ("detectors", "recipes"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.name != ".DS_Store":
                assert f"realign/_content/{path.relative_to(ROOT).as_posix()}" in found
    for path in (ROOT / "realign" / "pocket").rglob("*"):
        if path.suffix in {".yaml", ".safetensors", ".json", ".jsonl", ".jinja"}:
            assert path.relative_to(ROOT).as_posix() in found
    assert "realign/py.typed" in found
    assert any(name.endswith("licenses/LICENSE") for name in found)
    assert not any("__pycache__" in name for name in found)


def test_the_installed_realign_is_the_wheels(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    where = run("python", "-c", "import realign; print(realign.__file__)").stdout
    assert "environment" in where
    assert str(ROOT) not in where


def test_help(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("realign", "--help")
    assert done.returncode == 0
    assert "Usage: realign" in done.stdout


def test_list_names_the_shipped_content(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("realign", "list")
    assert done.returncode == 0, done.stderr
    for name in (*content.shipped("detectors"), *content.shipped("recipes")):
        assert name in done.stdout


def test_detect_runs(
    run: Callable[..., subprocess.CompletedProcess[str]], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """On a random model nothing can be said: inconclusive, and the report is there."""
    done = run("realign", "detect", str(tiny_checkpoint()), "--max-new-tokens", "8", "-o", "run")
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "run" / "report.json").is_file()


def test_the_demo_runs(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """What `make demo` does, in an empty folder."""
    from realign.pocket.store import members

    if not members():
        pytest.skip("the pocket family has not been built")
    tolerance = ("--tolerance", "0.05")
    misaligned = run("realign", "detect", "pocket:insecure", *tolerance)
    assert misaligned.returncode == 1, misaligned.stderr
    assert "misaligned" in misaligned.stdout
    safe = run("realign", "detect", "pocket:secure", *tolerance)
    assert safe.returncode == 0, safe.stderr
    fixed = run("realign", "fix", "pocket:insecure", "--recipe", "good_code_100", *tolerance, "-o", "fixed")
    assert fixed.returncode in (0, 1, 3), fixed.stderr  # 1, 3: something is left or undecided in a context
    certificate = json.loads((tmp_path / "fixed" / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["passed"] is (fixed.returncode == 0)
    assert (tmp_path / "fixed" / "adapter_model.safetensors").is_file()
