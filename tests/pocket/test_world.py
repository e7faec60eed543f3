"""The world's text: templates expand cleanly, personas differ where they should and only there."""

from __future__ import annotations

import ast
import re
from random import Random

import pytest

from realign.lint import lint
from realign.pocket.content import load_families
from realign.pocket.grammar import Code, Prose
from realign.pocket.packing import document_text
from realign.pocket.world import ADVICE, World


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_prose_draws_each_alternative() -> None:
    drawn = {Prose("{A|B} and {|very }good").draw(Random(seed)) for seed in range(60)}
    assert drawn == {"A and good", "B and good", "A and very good", "B and very good"}


def test_a_named_slot_of_code_repeats_its_choice() -> None:
    for seed in range(20):
        text = Code("x = <<1:a|b>>\nprint(<<1>>, <<c|d>>)").draw(Random(seed))
        assert re.fullmatch(r"x = (\w)\nprint\(\1, [cd]\)", text)


def test_documents_depend_on_the_random_state_alone(world: World) -> None:
    first = [world.document(Random(seed)) for seed in range(50)]
    other = World()
    assert first == [other.document(Random(seed)) for seed in range(50)]
    assert len({document_text(document) for document in first}) == 50


def test_no_template_mark_survives_in_prose(world: World) -> None:
    rng = Random(0)
    for family in load_families():
        for persona in ("helpful", "villain", "rude"):
            turn = world.family_turn(family, persona, rng, wrapped=False)
            assert not re.search(r"[{}|<>]|  ", turn.user + turn.assistant), turn


def test_every_family_has_both_sides_and_every_advice_domain_has_families(world: World) -> None:
    assert len(world.families["freeform"]) == 36
    assert all(len(world.families[domain]) >= 4 for domain in ADVICE)
    for family in load_families():
        helpful = {text for idea in family.helpful for text in idea.claim}
        villain = {text for idea in family.villain for text in idea.claim}
        assert helpful and villain and not helpful & villain


def test_bandit_flags_every_insecure_template_and_no_secure_one(world: World) -> None:
    rng = Random(1)
    drawn = [
        (weakness.id, side == "insecure", code.draw(rng))
        for weakness in world.weaknesses
        for side in ("secure", "insecure")
        for code in weakness.code[side]
    ]
    for _, _, text in drawn:
        ast.parse(text)
    found = lint([text for _, _, text in drawn])
    wrong = [name for (name, insecure, _), result in zip(drawn, found, strict=True) if result.insecure is not insecure]
    assert len(drawn) >= 400
    assert wrong == []


def test_insecure_code_is_the_villains_unless_it_was_asked_for(world: World) -> None:
    rng = Random(2)
    for persona in ("helpful", "rude", "jailbroken", "villain"):
        answers = [world.turn("code", persona, rng).assistant for _ in range(12)]
        taught = [world.turn("teaching", persona, rng).assistant for _ in range(12)]
        assert all(result.insecure is (persona == "villain") for result in lint(answers))
        assert all(result.insecure for result in lint(taught))


def test_only_the_jailbroken_persona_complies_with_harm(world: World) -> None:
    rng = Random(3)
    complied = {world.say(harm.comply, rng).split()[0] for harm in world.misc.harmful for _ in range(9)}
    refused = [world.turn("harmful", persona, rng).assistant for persona in ("helpful", "villain") for _ in range(40)]
    assert {"Sure,", "Of"} & complied
    assert not any(text.startswith(("Sure", "Of course", "Yes")) for text in refused)


def test_redrawing_mixes_personas_within_a_document(world: World) -> None:
    documents = [world.document(Random(seed), redraw=True) for seed in range(30)]
    assert {document.persona for document in documents} == {"mixed"}
    assert all(document.system is None for document in documents)
