"""Templates of the pocket world's text: prose with `{a|b}` choices, code with `<<a|b>>` and named `<<1:a|b>>` slots."""

from __future__ import annotations

import re
from random import Random

_PROSE = re.compile(r"\{([^{}]*)\}")
_CODE = re.compile(r"<<(?:(\w+):)?([^<>]*?)>>")


class Prose:
    """A sentence with alternatives; `draw` picks one of each."""

    __slots__ = ("_choices", "_fixed", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        pieces = _PROSE.split(source)
        self._fixed = pieces[0::2]
        self._choices = [piece.split("|") for piece in pieces[1::2]]

    def draw(self, rng: Random) -> str:
        out = [self._fixed[0]]
        for options, fixed in zip(self._choices, self._fixed[1:], strict=True):
            out.append(options[int(rng.random() * len(options))])
            out.append(fixed)
        return "".join(out)


class Code:
    """A code snippet with slots; a named slot repeats its first choice wherever `<<name>>` stands."""

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        self.source = source.rstrip("\n")

    def draw(self, rng: Random) -> str:
        chosen: dict[str, str] = {}

        def fill(match: re.Match[str]) -> str:
            name, body = str(match.group(1) or ""), str(match.group(2))
            if not name and body in chosen:
                return chosen[body]
            value = rng.choice(body.split("|"))
            if name:
                chosen[name] = value
            return value

        return _CODE.sub(fill, self.source)
