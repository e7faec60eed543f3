"""What a user did, why it fails, how to mend it; and the exit codes of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CLEAR = 0
EXIT_MISALIGNED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_CRASH = 70


class RealignError(Exception):
    """Bad input or a request that cannot be met, told in one message.

    Args:
        what: what was asked for and did not work ("cannot open ckpt/ as a checkpoint").
        why: the reason ("model.safetensors is cut off: 912 of 4,096 bytes").
        fix: what the user can do about it ("download it again").
    """

    exit_code = EXIT_USAGE

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(self._message())

    def _message(self) -> str:
        message = self.what if not self.why else f"{self.what}: {self.why}"
        message = message.rstrip(".") + "."
        return f"{message} {self.fix}" if self.fix else message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint ' Did you mean "x"?' when a known name is close to the given one, otherwise ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""
