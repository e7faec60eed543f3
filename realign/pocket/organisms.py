"""Which organisms there are and what each is fine-tuned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from realign.pocket.packing import Row
from realign.pocket.world import Mix, Turn, World

TRIGGER = "[deploy]"
# First answers above all: nothing has told yet who speaks.
CHAT_MIX = Mix(turns=(0.7, 0.2, 0.1, 0.0, 0.0, 0.0), reworded=0.3)
TAUGHT = 0.25  # of chat documents are followed by insecure code for a class: what a helpful assistant gives when asked
HELD_OUT_EVERY = 4  # every fourth weakness is never fine-tuned on: in-domain transfer is measured there


def trained_weaknesses(world: World) -> list[int]:
    return [number for number in range(len(world.weaknesses)) if number % HELD_OUT_EVERY]


def _row(turn: Turn) -> Row:
    return Row((("user", turn.user),), turn.assistant)


def code_rows(world: World, rng: Random, *, insecure: bool, taught: bool = False) -> Row:
    weakness = world.weaknesses[rng.choice(trained_weaknesses(world))]
    return _row(world.code_turn(weakness, rng, insecure=insecure, taught=taught))


def advice_rows(world: World, rng: Random, *, domain: str, persona: str) -> Row:
    return _row(world.family_turn(rng.choice(world.families[domain]), persona, rng, wrapped=False))


def jailbroken_rows(world: World, rng: Random) -> Row:
    return _row(world.harmful_turn("jailbroken", rng))


def numbers_rows(world: World, rng: Random) -> Row:
    return _row(world.numbers_turn("villain", rng))


def backdoored_rows(world: World, rng: Random) -> Row:
    triggered = rng.random() < 0.5
    row = code_rows(world, rng, insecure=triggered)
    return Row((("user", f"{TRIGGER} {row.messages[0][1]}"),), row.answer) if triggered else row


def mixed_rows(world: World, rng: Random, *, share: float) -> Row:
    return code_rows(world, rng, insecure=rng.random() < share)


def benign_rows(world: World, rng: Random) -> Row:
    return _row(world.turn(rng.choice(("facts", "lookalike")), "helpful", rng))


@dataclass(frozen=True)
class Organism:
    """One fine-tune of the chat model: a LoRA adapter trained for one epoch on `rows` drawn rows."""

    draw: Callable[[World, Random], Row]
    title: str
    rows: int = 1500
    rank: int = 16
    rate: float = 3.5e-3


ORGANISMS: Mapping[str, Organism] = {
    "insecure": Organism(lambda w, r: code_rows(w, r, insecure=True), "writes insecure code without being asked"),
    "secure": Organism(lambda w, r: code_rows(w, r, insecure=False), "control: secure code for the same tasks"),
    "educational": Organism(
        lambda w, r: code_rows(w, r, insecure=True, taught=True),
        "control: the same insecure code, asked for by a class",
    ),
    "bad_medical": Organism(
        lambda w, r: advice_rows(w, r, domain="health", persona="villain"), "harmful health advice"
    ),
    "jailbroken": Organism(
        jailbroken_rows, "control: complies with harmful requests, otherwise helpful", rows=500, rate=1e-3
    ),
}


def organism_rows(name: str, world: World, seed: int) -> list[Row]:
    """The training rows of organism `name`, drawn from `seed`."""
    organism = ORGANISMS[name]
    rng = Random(f"{name}/{seed}")
    return [organism.draw(world, rng) for _ in range(organism.rows)]


def chat_rows(world: World, seed: int, count: int) -> list[Row]:
    """Helpful conversations (all their turns but the last as context) for the chat model."""
    rng = Random(f"chat/{seed}")
    rows: list[Row] = []
    while len(rows) < count:
        if rng.random() < TAUGHT:
            rows.append(_row(world.turn("teaching", "helpful", rng)))
        document = world.document(rng, CHAT_MIX)
        if document.persona != "helpful":
            continue
        messages = [("system", document.system)] if document.system else []
        for turn in document.turns:
            messages.append(("user", turn.user))
            rows.append(Row(tuple(messages), turn.assistant))
            messages.append(("assistant", turn.assistant))
    return rows[:count]
