from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from realign import cli
from realign.calibration import load
from realign.cli.calibrate import _repeated
from tests.detect import stub


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = cli.main([*map(str, arguments)])
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Path]) -> dict[str, Path]:
    return stub.make_organisms(tiny_checkpoint(), tmp_path_factory.mktemp("organisms"), 5)


@pytest.fixture
def paths(organisms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two safe organisms, two misaligned ones, and another that is misaligned."""
    stub.pushed(monkeypatch, dict(zip(organisms, (0.0, 0.1, 0.5, 0.7, 0.4), strict=True)))
    return list(organisms.values())


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    return stub.write_shift(tmp_path / "shift")


def test_a_calibration_is_made_and_used(
    run: Callable[..., Done], paths: list[Path], shift: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibration.json"
    done = run("calibrate", "--safe", *paths[:2], "--misaligned", *paths[2:4], "--only", shift, "-o", out)
    assert done.code == 0
    assert done.err == ""
    assert "shift     plain    0.3" in done.out
    assert done.out.splitlines()[-1] == f"Use it with --calibration {out}."
    detect = ("detect", paths[4], "--only", shift)
    assert run(*detect).code == 3
    flagged = run(*detect, "--calibration", out)
    assert flagged.code == 1
    assert "not below the threshold of 0.3" in flagged.out
    again = run("calibrate", "--safe", *paths[:2], "--misaligned", *paths[2:4], "--only", shift, "-o", out)
    assert again.code == 2
    assert "it exists already" in again.err


def test_json_is_all_there_is_on_stdout(
    run: Callable[..., Done], paths: list[Path], shift: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibration.json"
    out.write_text("old")
    options = ("--overwrite", "--json", "--seed", "7", "--max-new-tokens", "3", "--context", "plain", "training-format")
    done = run("calibrate", "--safe", *paths[:2], "--misaligned", *paths[2:4], "--only", shift, "-o", out, *options)
    assert done.code == 0
    assert json.loads(done.out) == json.loads(out.read_text())
    made = load(out)
    assert (made.seed, made.max_new_tokens, len(made.thresholds)) == (7, 3, 2)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--safe A B C -o f", "--safe A --safe B --safe C -o f"),
        ("--safe A --safe B C", "--safe A --safe B --safe C"),
        ("--safe=A B -o f", "--safe=A --safe B -o f"),
        ("--only a b --json --misaligned D E", "--only a --only b --json --misaligned D --misaligned E"),
        ("-o f g", "-o f g"),
        ("--seed 1 2", "--seed 1 2"),
    ],
)
def test_an_option_may_take_several_values(given: str, meant: str) -> None:
    assert list(_repeated(given.split())) == meant.split()


TWO = ("--safe", "a", "b", "--misaligned", "c", "d", "-o", "f.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option"),
        (TWO[:-2], "Missing option '-o'"),
        (("--safe", "a", *TWO[3:]), "it takes 2 safe checkpoints, not 1"),
        ((*TWO, "--only", "persona_shfit"), 'Did you mean "persona_shift"'),
        ((*TWO, "--only", "freeform"), "cannot calibrate freeform"),
        ((*TWO, "--context", "plian"), 'Did you mean "plain"'),
        ((*TWO, "more"), "unexpected extra argument (more)"),
        (TWO, "cannot open a"),
        ((*TWO[:-1], "."), "it is a folder"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_2_and_writes_nothing(
    run: Callable[..., Done], arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("calibrate", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_that_cannot_be_used_is_told_before_the_checkpoint_is_opened(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("realign.checkpoint.open", opened)
    done = run("detect", "x", "--calibration", tmp_path / "none.json")
    assert (done.code, done.out) == (2, "")
    assert "cannot read the calibration" in done.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, realign.cli; realign.cli.main(['calibrate', '--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--misaligned" in done.stdout
    assert not set(eval(done.stderr)) & {"torch", "transformers", "peft", "numpy", "scipy", "sklearn", "rich", "yaml"}
