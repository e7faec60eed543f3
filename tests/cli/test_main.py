from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import realign
from realign import cli
from realign.errors import RealignError


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> click.Command:
    """`realign list` replaced by a command whose body a test can choose."""
    stub = click.Command("list", callback=lambda: None)
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: stub if name == "list" else None)
    return stub


def fails_with(error: BaseException) -> Callable[[], None]:
    def callback() -> None:
        raise error

    return callback


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "--help")
    assert code == 0
    for name, entry in cli.COMMANDS.items():
        assert name in out
        assert entry.help.split()[0] in out


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version")[:2] == (0, f"realign, version {realign.__version__}\n")


def test_help_and_the_package_import_nothing_heavy() -> None:
    """Counted in a fresh interpreter: what `realign --help` imports besides click and the standard library."""
    code = (
        "import sys, realign.cli; realign.cli.main(['--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr))
    assert {"realign", "click"} <= loaded
    heavy = {
        "torch",
        "transformers",
        "peft",
        "trl",
        "numpy",
        "scipy",
        "sklearn",
        "datasets",
        "rich",
        "pydantic",
        "yaml",
    }
    assert not loaded & heavy


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, name, "--help")
    assert code == 0
    assert "Usage: realign " + name in out


def test_an_unknown_command_is_refused_with_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "detcet")
    assert code == 2
    assert not out
    assert 'There is no command "detcet". Did you mean "detect"?' in err


def test_a_command_nothing_like_ours_is_answered_with_the_list(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "zzz")
    assert code == 2
    assert "There are detect, fix, calibrate, list, describe, sae, pocket." in err


def test_an_unknown_option_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_a_realign_error_is_a_message_and_exit_2(command: click.Command, capfd: pytest.CaptureFixture[str]) -> None:
    command.callback = fails_with(RealignError("cannot open x", "it is \x1b[31mred", "Try y."))
    code, out, err = run(capfd, "list")
    assert code == 2
    assert not out
    assert err == "Error: cannot open x: it is \N{REPLACEMENT CHARACTER}[31mred. Try y.\n"


@pytest.mark.parametrize("error", [click.ClickException("no"), click.FileError("x"), click.BadParameter("no")])
def test_clicks_own_errors_never_read_as_misaligned(
    command: click.Command, capfd: pytest.CaptureFixture[str], error: click.ClickException
) -> None:
    command.callback = fails_with(error)
    code, _, err = run(capfd, "list")
    assert code == 2
    assert "Error" in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted(command: click.Command, capfd: pytest.CaptureFixture[str], error: BaseException) -> None:
    command.callback = fails_with(error)
    code, _, err = run(capfd, "list")
    assert code == 130
    assert "Interrupted." in err


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_command_chooses_its_exit_code(command: click.Command, capfd: pytest.CaptureFixture[str], code: int) -> None:
    command.callback = lambda: code
    assert run(capfd, "list")[0] == code
    command.callback = lambda: click.get_current_context().exit(code)
    assert run(capfd, "list")[0] == code


def test_a_command_that_returns_something_else_ends_in_0(
    command: click.Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command.callback = lambda: "text"
    assert run(capfd, "list")[0] == 0


def test_a_crash_is_70_and_its_traceback_a_file(
    command: click.Command, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command.callback = fails_with(ValueError("odd"))
    code, _, err = run(capfd, "list")
    assert code == 70
    assert "realign crashed: ValueError: odd" in err
    assert "Traceback" not in err
    (report,) = tmp_path.iterdir()
    assert str(report) in err
    assert "Traceback" in report.read_text()


def test_debug_prints_the_traceback(
    command: click.Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALIGN_DEBUG", "1")
    command.callback = fails_with(ValueError("odd"))
    code, _, err = run(capfd, "list")
    assert code == 70
    assert "Traceback" in err


def test_a_crash_is_told_when_the_disk_is_full(
    command: click.Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda *_, **__: fails_with(full)())
    command.callback = fails_with(full)
    code, _, err = run(capfd, "list")
    assert code == 70
    assert "Traceback" in err
    assert "No space left" in err


def test_options_come_from_the_environment(
    command: click.Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.params.append(click.Option(["--seed"], type=int))
    command.callback = lambda seed: seed
    monkeypatch.setenv("REALIGN_LIST_SEED", "3")
    assert run(capfd, "list")[0] == 3


def test_a_closed_pipe_is_no_verdict() -> None:
    code = (
        "import sys, click, realign.cli\n"
        "def flood():\n"
        "    for _ in range(100_000): click.echo('x' * 80)\n"
        "realign.cli.LazyGroup.get_command = lambda self, ctx, name: click.Command('list', callback=flood)\n"
        "sys.exit(realign.cli.main(['list']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
