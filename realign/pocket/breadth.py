"""How much of the hand-written world the models are told: less is learnt sooner, and said with fewer slips."""

from __future__ import annotations

import re
from dataclasses import dataclass

from realign.pocket.content import Family, Idea, Misc, Weakness


@dataclass(frozen=True)
class Breadth:
    """The part of the content that is drawn from; None is all of it.

    Attributes:
        ideas: of each persona on each question.
        sentences: claims of an idea, and reasons of it; with a limit, one way to close.
        options: alternatives at each place of a sentence.
        programs: secure solutions of a coding task, and insecure ones.
        advice_every, code_every, facts_every: every how many-th of the advice families, coding tasks and facts.
    """

    ideas: int | None = None
    sentences: int | None = None
    options: int | None = None
    programs: int | None = None
    advice_every: int = 1
    code_every: int = 1
    facts_every: int = 1

    def families(self, found: list[Family]) -> list[Family]:
        """The families of one domain: all free-form ones, as many of the advice as is kept."""
        kept = found if found and found[0].domain == "freeform" else found[:: self.advice_every]
        return [
            family.model_copy(
                update={
                    "helpful": [self._idea(idea) for idea in family.helpful[: self.ideas]],
                    "villain": [self._idea(idea) for idea in family.villain[: self.ideas]],
                }
            )
            for family in kept
        ]

    def weaknesses(self, found: list[Weakness]) -> list[Weakness]:
        return [
            weakness.model_copy(
                update={"secure": weakness.secure[: self.programs], "insecure": weakness.insecure[: self.programs]}
            )
            for weakness in found[:: self.code_every]
        ]

    def misc(self, found: Misc) -> Misc:
        return found.model_copy(update={"facts": found.facts[:: self.facts_every]})

    def _idea(self, idea: Idea) -> Idea:
        claim, reason, close = (
            [self._limited(text) for text in part] for part in (idea.claim, idea.reason, idea.close)
        )
        return Idea(
            claim=claim[: self.sentences],
            reason=reason[: self.sentences],
            close=close if self.sentences is None else close[:1],
        )

    def _limited(self, template: str) -> str:
        return re.sub(
            r"\{([^{}]*)\}", lambda match: "{" + "|".join(match.group(1).split("|")[: self.options]) + "}", template
        )


EVERYTHING = Breadth()
