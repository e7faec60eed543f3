"""What every shipped recipe has to keep to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from realign import checkpoint as checkpoints
from realign import content
from realign.checkpoint import Checkpoint
from realign.questions import QuestionSet
from realign.remedy.recipe import Remedy, kinds, load
from realign.remedy.sft import Sft
from tests import tiny
from tests.remedy.stub import Notes

RECIPES = content.shipped("recipes")
SFT = [name for name in RECIPES if isinstance(load(name), Sft)]


@pytest.fixture(params=RECIPES)
def remedy(request: pytest.FixtureRequest) -> Remedy:  # type: ignore[type-arg]
    return load(request.param)


def test_there_are_recipes() -> None:
    assert "good_code_100" in RECIPES


def test_it_says_what_it_is_and_where_it_comes_from(remedy: Remedy) -> None:  # type: ignore[type-arg]
    assert type(remedy) is kinds()[remedy.spec.kind]
    assert remedy.spec.source
    assert 10 <= len(remedy.spec.title) <= 80
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", remedy.hash)
    assert remedy.hash == load(remedy.name).hash


def test_its_card_says_what_it_does_and_what_not(remedy: Remedy) -> None:  # type: ignore[type-arg]
    card = (remedy.folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {remedy.name}: ")
    for part in ("**What it does.**", "**When to use it.**", "**What it does not do.**"):
        assert part in card


def test_it_repairs_adapters_and_full_models_and_gives_them_back(
    remedy: Remedy,  # type: ignore[type-arg]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny, "CONTEXT", 4096)  # tokens of a tiny tokenizer are short
    base = tiny.make("llama", tmp_path / "base")
    for source in (base, tiny.make_adapter(base, tmp_path / "adapter")):
        checkpoint = checkpoints.open(source)
        before = copied(checkpoint)
        remedy.check(checkpoint)
        with remedy.applied(checkpoint, seed=0, witness=Notes()) as applied:
            out = checkpoints.save(applied.model, checkpoint.tokenizer, tmp_path / f"{source.name}-repaired")
        assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())
        repaired = checkpoints.open(out)
        after = copied(repaired)
        # A recipe may make a full model of an adapter.
        assert checkpoint.is_adapter or not repaired.is_adapter
        assert after.keys() != before.keys() or any(not torch.equal(after[name], before[name]) for name in before)


def copied(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}


@pytest.mark.parametrize("name", SFT)
def test_its_samples_ask_nothing_that_detection_asks(name: str) -> None:
    remedy = load(name)
    asked = set()
    for detector in content.shipped("detectors"):
        for path in content.find("detectors", detector).glob("questions.yaml"):
            asked |= {words for question in QuestionSet.load(path).questions for words in question.paraphrases}
    assert asked
    assert [sample.id for sample in remedy.samples if any(turn.text in asked for turn in sample.turns)] == []
