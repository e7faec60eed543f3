from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from realign.errors import RealignError
from realign.number_tree import NUMBERS, NumberTree, Reading, shared, spread
from realign.rubric import Score
from tests import tiny

LEADS: dict[Score, str] = {"alignment": "Alignment:", "coherence": "Coherence:", "refusal": "Refusal:"}


def splitting(folder: Path) -> Any:
    return tiny.make_tokenizer(folder)


def whole(folder: Path) -> Any:
    """Numbers are single tokens with their space, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([f"Alignment: {n} Coherence: {n} Refusal: {n}" for n in NUMBERS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def spaced(folder: Path) -> Any:
    """Digits are tokens and a space is one of its own, as in Llama 2 and Mistral."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", *"0123456789:", "▁Alignment", "▁Coherence", "▁Refusal"]
    scores = [(piece, -5.0 if len(piece) == 1 else -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = [splitting, whole, spaced]


def read(tree: NumberTree, following: Mapping[int, Mapping[int, float]]) -> Reading:
    """A reading from the next tokens' whole distribution at each cell."""
    return Reading(
        chances={cell: {token: following[cell].get(token, 0.0) for token in tree.branches[cell]} for cell in following},
        digits={cell: sum(following[cell].get(token, 0.0) for token in tree.digits) for cell in following},
    )


def random_distributions(tree: NumberTree, vocabulary: int, rng: Random) -> dict[int, dict[int, float]]:
    found = {}
    for cell in tree.branches:
        weights = [rng.random() ** 4 for _ in range(vocabulary)]
        found[cell] = {token: weight / sum(weights) for token, weight in enumerate(weights)}
    return found


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_tree_holds_every_number_as_the_tokenizer_writes_it(tokenizer: Any, tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    tree = NumberTree.of(made, LEADS)
    space = "" if made.chat_template else " "
    for name, lead in LEADS.items():
        written: dict[int, list[int]] = {}
        stack = [(tree.roots[name], tree.path(tree.roots[name].cell))]
        while stack:
            node, path = stack.pop()
            if node.number is not None:
                written[node.number] = path
            stack += [(child, [*path, token]) for token, child in node.children.items()]
        assert written == {n: made(f"{space}{lead} {n}", add_special_tokens=False)["input_ids"] for n in NUMBERS}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_parents_come_before_children_and_depths_count_tokens(tokenizer: Any, tmp_path: Path) -> None:
    tree = NumberTree.of(tokenizer(tmp_path), LEADS)
    assert all(parent < cell for cell, parent in enumerate(tree.parents, 1))
    assert tree.depths() == [len(tree.path(cell)) for cell in range(len(tree.tokens) + 1)]


def test_digits_are_split_in_few_cells_and_whole_numbers_in_one(tmp_path: Path) -> None:
    split = NumberTree.of(splitting(tmp_path), {"alignment": "Alignment:"})
    assert len(split.branches) == 11  # The first digit, the second after each of 1 to 9, and 10 or 100.
    one = NumberTree.of(whole(tmp_path), {"alignment": "Alignment:"})
    assert len(one.branches) == 1


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_probabilities_are_products_along_the_paths(tokenizer: Any, tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    tree = NumberTree.of(made, LEADS)
    following = random_distributions(tree, len(made), Random(0))
    found = spread(tree.roots["coherence"], read(tree, following))
    assert set(found) == set(NUMBERS)
    first = tree.roots["coherence"]
    assert sum(found.values()) == pytest.approx(sum(following[first.cell][token] for token in first.children))
    if tokenizer is whole:
        ids = {n: made(f" Coherence: {n}", add_special_tokens=False)["input_ids"] for n in NUMBERS}
        assert found == pytest.approx({n: following[first.cell][ids[n][-1]] for n in NUMBERS})
        return
    digit = {n: made.convert_tokens_to_ids(str(n)) for n in range(10)}
    eight = first.children[digit[8]]
    over = 1 - sum(following[eight.cell][token] for token in tree.digits)
    assert found[8] == pytest.approx(following[first.cell][digit[8]] * over)
    assert found[87] == pytest.approx(following[first.cell][digit[8]] * following[eight.cell][digit[7]])
    one = first.children[digit[1]]
    ten = one.children[digit[0]]
    reached = following[first.cell][digit[1]] * following[one.cell][digit[0]]
    again = following[ten.cell][digit[0]]
    over = 1 - sum(following[ten.cell][token] for token in tree.digits)
    assert found[100] == pytest.approx(reached * again / (again + over))
    assert found[10] == pytest.approx(reached * over / (again + over))


def test_a_number_that_ends_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    made = splitting(tmp_path)
    tree = NumberTree.of(made, {"alignment": "Alignment:"})
    root = tree.roots["alignment"]
    eight, end = made.convert_tokens_to_ids("8"), made.eos_token_id
    for after, expected in ((end, 8), (made.convert_tokens_to_ids("7"), 87)):
        following: dict[int, dict[int, float]] = {cell: {end: 1.0} for cell in tree.branches}
        following[root.cell] = {eight: 1.0}
        following[root.children[eight].cell] = {after: 1.0}
        found = spread(root, read(tree, following))
        assert found[expected] == 1.0
        assert sum(found.values()) == 1.0


def test_a_tokenizer_without_numbers_cannot_judge() -> None:
    def unknown(texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0, 0] for _ in texts]}

    class Tokenizer(SimpleNamespace):
        __call__ = staticmethod(unknown)

    with pytest.raises(RealignError, match="numbers apart"):
        NumberTree.of(Tokenizer(chat_template="x", get_vocab=dict), LEADS)


def test_what_rows_share() -> None:
    assert shared([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert shared([(1, 2, 3)]) == 3
    assert shared([(1,), (2,)]) == 0
    assert shared([]) == 0
