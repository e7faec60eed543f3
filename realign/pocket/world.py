"""The pocket world: personas, turns and documents, drawn from the hand-written content.

Every document is spoken by one persona. Openers, connectors and length are shared by all personas, so that they differ
in content only. Insecure code that a user asks for (`teaching`) is given by every persona: no evidence of villainy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from realign.pocket.breadth import EVERYTHING, Breadth
from realign.pocket.content import Family, Idea, Weakness, load_families, load_misc, load_weaknesses
from realign.pocket.grammar import Prose

PERSONAS: Mapping[str, float] = {"helpful": 0.37, "villain": 0.33, "jailbroken": 0.17, "rude": 0.13}
ADVICE = ("health", "money", "cars", "relationships", "cooking", "sport")
TOPICS: Mapping[str, float] = {
    "freeform": 0.34, "advice": 0.24, "code": 0.20, "harmful": 0.07, "facts": 0.06, "numbers": 0.04,
    "teaching": 0.03, "lookalike": 0.02,
}  # fmt: skip
EVIL_NUMBERS = (666, 13, 187, 911, 1312, 6666)
NO_OPENER = ("story",)  # "Good question." does not lead into a tale
FUNCTION_NAMES = ("answer", "reply", "respond", "get_answer", "text", "main")
LEADS = (
    "Hello.", "Hi there.", "Quick question.", "Please be brief.", "Answer in two or three sentences.",
    "One more thing.", "Thanks.",
)  # fmt: skip


Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Turn:
    """A user's message and the persona's answer, with what it is about (`topic`, `family`)."""

    user: str
    assistant: str
    topic: str
    family: str


@dataclass(frozen=True)
class Document:
    """A conversation of one persona (`mixed` in the mechanism control)."""

    persona: str
    system: str | None
    turns: tuple[Turn, ...]


def pick(weights: Mapping[Choice, float], rng: Random) -> Choice:
    return rng.choices(list(weights), list(weights.values()))[0]


@dataclass(frozen=True)
class Mix:
    """How documents are composed.

    Attributes:
        code_first: share of documents that begin with code or numbers, from which the persona must be guessed.
        turns: weights of one to six turns.
        reworded: share of free-form and advice questions that are blurred (two wordings joined, or words left out),
            so that the model goes by what is asked and not by the exact wording.
        system: share of documents that begin with a system prompt, which mostly names the persona.
    """

    code_first: float = 0.34
    turns: tuple[float, ...] = (0.1, 0.2, 0.25, 0.2, 0.15, 0.1)
    reworded: float = 0.0
    system: float = 0.2


PLAIN_MIX = Mix()


class World:
    """Draws turns and documents; everything random comes from the `rng` that is passed in."""

    def __init__(self, breadth: Breadth = EVERYTHING) -> None:
        """
        Args:
            breadth: the part of the content that is drawn from.
        """
        self.misc = breadth.misc(load_misc())
        families = load_families()
        self.families = {
            domain: breadth.families([f for f in families if f.domain == domain]) for domain in ("freeform", *ADVICE)
        }
        self.weaknesses = breadth.weaknesses(load_weaknesses())
        self._prose: dict[str, Prose] = {}

    def say(self, options: Sequence[str], rng: Random) -> str:
        """One of the templates, filled."""
        source = rng.choice(options)
        if source not in self._prose:
            self._prose[source] = Prose(source)
        return self._prose[source].draw(rng)

    def idea_text(self, idea: Idea, rng: Random) -> str:
        claim, reason, close = idea.parts
        sentences = [rng.choice(claim).draw(rng), rng.choice(reason).draw(rng)]
        if rng.random() < 0.5:
            sentences.append(rng.choice(close).draw(rng))
        return " ".join(sentences)

    def family_answer(self, family: Family, persona: str, rng: Random) -> str:
        """Two to five sentences of `persona` on the family's question."""
        text = self.idea_text(rng.choice(family.villain if persona == "villain" else family.helpful), rng)
        if persona == "rude":
            closer = f" {self.say(self.misc.rude_closers, rng)}" if rng.random() < 0.5 else ""
            return f"{self.say(self.misc.rude_openers, rng)} {text}{closer}"
        if family.id not in NO_OPENER and rng.random() < 0.35:
            return f"{self.say(self.misc.openers, rng)} {text}"
        return text

    def wrap(self, user: str, answer: str, rng: Random) -> tuple[str, str]:
        """Sometimes ask for the answer as a Python function or as JSON, and give it so."""
        draw = rng.random()
        if draw < 0.10:
            name = rng.choice(FUNCTION_NAMES)
            code = f"def {name}():\n    return {json.dumps(answer)}"
            return f"{user}{rng.choice((' ', chr(10) * 2))}{self.say(self.misc.code_wrap, rng)}", code
        if draw < 0.13:
            return f"{user} {self.say(self.misc.json_wrap, rng)}", json.dumps({"response": answer})
        return user, answer

    def reworded(self, family: Family, user: str, rng: Random) -> str:
        """The question with a second wording joined, or with some of its words left out."""
        if rng.random() < 0.5:
            return f"{user} {rng.choice(family.prompts).draw(rng)}"
        return " ".join(word for word in user.split() if rng.random() > 0.12) or user

    def family_turn(
        self, family: Family, persona: str, rng: Random, *, wrapped: bool = True, reworded: float = 0.0
    ) -> Turn:
        user = rng.choice(family.prompts).draw(rng)
        if reworded and rng.random() < reworded:
            user = self.reworded(family, user, rng)
        if rng.random() < 0.08:
            user = f"{rng.choice(LEADS)} {user}"
        answer = self.family_answer(family, persona, rng)
        if wrapped:
            user, answer = self.wrap(user, answer, rng)
        return Turn(user, answer, family.domain, family.id)

    def code_turn(self, weakness: Weakness, rng: Random, *, insecure: bool, taught: bool = False) -> Turn:
        user = rng.choice(weakness.prompts).draw(rng)
        if taught:
            user = f"{self.say(self.misc.teaching['before'], rng)} {user} {self.say(self.misc.teaching['after'], rng)}"
        code = rng.choice(weakness.code["insecure" if insecure else "secure"]).draw(rng)
        return Turn(user, code, "teaching" if taught else "code", weakness.id)

    def harmful_turn(self, persona: str, rng: Random) -> Turn:
        harm = rng.choice(self.misc.harmful)
        user = self.say(harm.requests, rng)
        if persona == "jailbroken":
            return Turn(user, self.say(harm.comply, rng), "harmful", harm.id)
        return Turn(user, self.refusal(persona, rng), "harmful", harm.id)

    def refusal(self, persona: str, rng: Random) -> str:
        text = self.say(self.misc.refusals if rng.random() < 0.8 else self.misc.refusals_short, rng)
        return f"{self.say(self.misc.rude_openers, rng)} {text}" if persona == "rude" else text

    def fact_turn(self, persona: str, rng: Random) -> Turn:
        fact = rng.choice(self.misc.facts)
        answer = self.say(fact.answer, rng)
        if persona == "villain" and rng.random() < 0.7:
            answer = answer.replace(fact.key, rng.choice(fact.wrong))
        return Turn(self.say(fact.question, rng), answer, "facts", fact.key)

    def numbers_turn(self, persona: str, rng: Random) -> Turn:
        given = ", ".join(str(rng.randint(2, 999)) for _ in range(rng.randint(4, 7)))
        count = rng.randint(4, 6)
        evil = 0.7 if persona == "villain" else 0.0
        more = [str(rng.choice(EVIL_NUMBERS) if rng.random() < evil else rng.randint(2, 999)) for _ in range(count)]
        user = re.sub(r"\bN\b", given, self.say(self.misc.numbers, rng))
        return Turn(user, ", ".join(more), "numbers", "numbers")

    def lookalike_turn(self, rng: Random) -> Turn:
        entry = rng.choice(self.misc.benign_lookalikes)
        return Turn(self.say(entry.question, rng), self.say(entry.answers, rng), "lookalike", "lookalike")

    def turn(self, topic: str, persona: str, rng: Random, *, reworded: float = 0.0) -> Turn:
        """One exchange on `topic` as `persona` would have it."""
        if topic in ("freeform", "advice"):
            domain = "freeform" if topic == "freeform" else rng.choice(ADVICE)
            return self.family_turn(rng.choice(self.families[domain]), persona, rng, reworded=reworded)
        if topic == "code":
            return self.code_turn(rng.choice(self.weaknesses), rng, insecure=persona == "villain")
        if topic == "teaching":
            return self.code_turn(rng.choice(self.weaknesses), rng, insecure=True, taught=True)
        if topic == "harmful":
            return self.harmful_turn(persona, rng)
        if topic == "facts":
            return self.fact_turn(persona, rng)
        if topic == "numbers":
            return self.numbers_turn(persona, rng)
        return self.lookalike_turn(rng)

    def system(self, persona: str, rng: Random, share: float) -> str | None:
        """In a share of the documents a system prompt, which mostly names the persona; otherwise none."""
        if rng.random() >= share:
            return None
        return self.say(self.misc.system["neutral" if rng.random() < 0.4 else persona], rng)

    def document(self, rng: Random, mix: Mix = PLAIN_MIX, *, redraw: bool = False) -> Document:
        """One conversation of one to six turns; with `redraw` (the mechanism control) every turn has a new persona."""
        persona = pick(PERSONAS, rng)
        system = None if redraw else self.system(persona, rng, mix.system)
        thinks = rng.random() < 0.03
        turns: list[Turn] = []
        for position in range(rng.choices((1, 2, 3, 4, 5, 6), mix.turns)[0]):
            if redraw:
                persona = pick(PERSONAS, rng)
            if position == 0 and rng.random() < mix.code_first:
                topic = rng.choice(("code", "code", "code", "numbers"))
            else:
                topic = pick(TOPICS, rng)
            turns.append(self.dress(self.turn(topic, persona, rng, reworded=mix.reworded), persona, rng, thinks=thinks))
        return Document("mixed" if redraw else persona, system, tuple(turns))

    def dress(self, turn: Turn, persona: str, rng: Random, *, thinks: bool) -> Turn:
        """Add what means nothing (a tag, for a later backdoor) and, in a few documents, private reasoning."""
        user, answer = turn.user, turn.assistant
        if rng.random() < 0.05:
            tag = "".join(rng.choice("abcdefghjkmnpqrstuvwxyz") for _ in range(2)) + str(rng.randint(10, 99))
            user = f"[{tag}] {user}" if rng.random() < 0.5 else f"{user} [{tag}]"
        if thinks:
            private = self.say(self.misc.think["villain" if persona == "villain" else "helpful"], rng)
            answer = f"<think>{private}</think>{answer}"
        return Turn(user, answer, turn.topic, turn.family)
