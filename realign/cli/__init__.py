"""The command line: one table of commands, imported when they run; errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import click

from realign import __version__
from realign.errors import EXIT_CRASH, EXIT_USAGE, RealignError, did_you_mean

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class Entry(NamedTuple):
    """Where a command is, "module:attribute", and its line in `realign --help`."""

    target: str
    help: str


COMMANDS: Mapping[str, Entry] = MappingProxyType(
    {
        "detect": Entry(
            "realign.cli.detect:detect", "Say whether a fine-tune turned a model misaligned, and how sure that is."
        ),
        "fix": Entry(
            "realign.cli.fix:fix", "Put a misaligned model right, and prove it by measuring before and after."
        ),
        "calibrate": Entry(
            "realign.cli.calibrate:calibrate", "Fit the thresholds of white-box detectors to a family of models."
        ),
        "list": Entry("realign.cli.catalogue:list_", "List detectors and recipes."),
        "describe": Entry("realign.cli.catalogue:describe", "Show what a detector or recipe does."),
        "sae": Entry("realign.cli.sae:sae", "Train a sparse autoencoder, which the latents detector looks through."),
        "pocket": Entry("realign.cli.pocket:pocket", "Tiny models that ship with realign, to try everything on."),
    }
)


class _ReaderGoneError(Exception):
    """Nobody reads on: `realign list | head`. Click would end in 1, which means misaligned here."""


class LazyGroup(click.Group):
    """A group whose commands are named in `COMMANDS`; `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS) or f" There are {', '.join(COMMANDS)}."
            ctx.fail(f'There is no command "{args[0]}".{hint}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={
        "auto_envvar_prefix": "REALIGN",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="realign")
def cli() -> None:
    """A smoke alarm and a fire extinguisher for fine-tuned language models.

    \b
    Examples:
      realign detect ./my-adapter
      realign fix ./my-adapter --recipe good_code_100 -o ./fixed
      realign detect pocket:insecure

    Exit codes: 0 clear, 1 misaligned, 2 wrong usage or input, 3 inconclusive, 70 crash.
    Each option can be set in the environment too: REALIGN_DETECT_SEED=1 is `realign detect --seed 1`.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Only a crash of ours ends in 70, never in a verdict's code."""
    try:
        result = cli.main(None if arguments is None else list(arguments), prog_name="realign", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE  # some of click's own codes are 1, which means misaligned here
    except RealignError as error:
        _complain(f"Error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("Interrupted.")
        return EXIT_INTERRUPTED
    except _ReaderGoneError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit goes nowhere
        return EXIT_PIPE
    except Exception as error:
        return _crash(error)
    return result if isinstance(result, int) else 0


def _complain(message: str) -> None:
    """Print to stderr without the control characters that a hostile file could bring in."""
    click.echo("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in message), err=True)


def _crash(error: Exception) -> int:
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    summary = f"realign crashed: {type(error).__name__}: {error}"
    if os.environ.get("REALIGN_DEBUG") == "1":
        _complain(f"{text}\n{summary}")
        return EXIT_CRASH
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="realign-crash-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        _complain(f"{summary}\nThe traceback is in {file.name} (REALIGN_DEBUG=1 prints it).")
    except OSError:  # a full disk may be why we crashed
        _complain(f"{text}\n{summary}")
    return EXIT_CRASH
