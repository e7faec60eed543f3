"""The tokens of all numbers from 0 to 100 as a tree, and the numbers' probabilities read off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

from realign.errors import RealignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realign.rubric import Score

NUMBERS = range(101)

# What is left of a number's tokens, and the number.
_Rest: TypeAlias = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Node:
    """A place in the tree.

    Attributes:
        cell: where the probabilities of what follows are read: 0 is the prompt's end, c > 0 the tree's token c - 1.
            A node without children has none (-1).
        number: the number that is complete here, or None.
        children: what a number can go on with.
    """

    cell: int
    number: int | None
    children: Mapping[int, Node]


@dataclass(frozen=True)
class Reading:
    """Probabilities of the next token, of one prompt.

    Attributes:
        chances: for each cell that is read, the probability of each token that the tree has there.
        digits: for each such cell, the probability of all tokens that begin with a digit, in the tree or not.
    """

    chances: Mapping[int, Mapping[int, float]]
    digits: Mapping[int, float]


@dataclass
class NumberTree:
    """Numbers behind one or more leads ("Alignment:"), as the model would write them.

    Tokens that all numbers of a lead begin with are given to the model; only where numbers part does it choose. The
    tree is laid out flat, so that a model can read all of it at once: token c - 1 belongs to cell c and follows cell
    `parents[c - 1]`.

    Attributes:
        tokens: the tokens that the model reads, parents before children.
        parents: for each token the cell that it follows.
        roots: for each lead the node where its numbers part.
        branches: the nodes with children, under their cells.
        digits: ids of all tokens that begin with a digit.
    """

    digits: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    roots: dict[Score, Node] = field(default_factory=dict)
    branches: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, leads: Mapping[Score, str]) -> NumberTree:
        """The tree for a tokenizer and the leads of the scores; a number follows its lead after a space.

        Raises:
            RealignError: the tokenizer writes two numbers with the same tokens.
        """
        vocabulary = tokenizer.get_vocab()
        tree = cls(tuple(sorted(token for text, token in vocabulary.items() if text[:1] in set("0123456789"))))
        # A transcript goes on after "Assistant:" with a space, a chat template's turn begins at once.
        space = "" if tokenizer.chat_template else " "
        for name, lead in leads.items():
            texts = [f"{space}{lead} {number}" for number in NUMBERS]
            written = [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            if len(set(written)) < len(NUMBERS):
                raise RealignError("cannot let this model judge", "its tokenizer does not tell all numbers apart")
            tree._plant(name, written)
        return tree

    def depths(self) -> list[int]:
        """For each cell how many tokens lie between the prompt's end and it; 0 for the prompt's end."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths

    def path(self, cell: int) -> list[int]:
        """The tokens from the prompt's end to a cell."""
        tokens: list[int] = []
        while cell:
            tokens.append(self.tokens[cell - 1])
            cell = self.parents[cell - 1]
        return tokens[::-1]

    def _plant(self, name: Score, written: Sequence[tuple[int, ...]]) -> None:
        cell, forced = 0, shared(written)
        for token in written[0][:forced]:
            cell = self._add(token, cell)
        self.roots[name] = self._grow([(ids[forced:], number) for number, ids in enumerate(written)], cell)

    def _add(self, token: int, parent: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens)

    def _grow(self, rests: Sequence[_Rest], cell: int) -> Node:
        """The node at a cell, from the tokens that the numbers have left there."""
        number = next((number for ids, number in rests if not ids), None)
        groups: dict[int, list[_Rest]] = {}
        for ids, other in rests:
            if ids:
                groups.setdefault(ids[0], []).append((ids[1:], other))
        children = {}
        for token, group in groups.items():
            # A token after which nothing is left to choose need not be read.
            last = len(group) == 1 and not group[0][0]
            children[token] = self._grow(group, -1 if last else self._add(token, cell))
        if children:
            self.branches.setdefault(cell, set()).update(children)
        return Node(cell, number, children)


def shared(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with in common."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def spread(node: Node, reading: Reading, weight: float = 1.0) -> dict[int, float]:
    """The probability of each number below a node that has the probability `weight`.

    They add up to the probability that the model writes a number there. A number that could go on (8, before 87) is
    over where the next token does not begin with a digit, whatever it is: the end of the turn, a line end, a full stop.
    """
    if not node.children:
        return {} if node.number is None else {node.number: weight}
    chances = reading.chances[node.cell]
    found: dict[int, float] = {}
    if node.number is not None:
        over = max(0.0, 1.0 - reading.digits[node.cell])
        total = over + sum(chances[token] for token in node.children)
        found[node.number] = weight * over / total if total else weight
        weight = weight / total if total else 0.0
    for token, child in node.children.items():
        found |= spread(child, reading, weight * chances[token])
    return found
