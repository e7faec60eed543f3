"""Detectors: folders of content, each of a kind; the kinds are the modules of this package that define one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from realign import content
from realign.dialogue import context as known_context
from realign.errors import RealignError, did_you_mean

if TYPE_CHECKING:
    from realign.detect.finding import Competence, Finding
    from realign.detect.settings import Settings
    from realign.evidence import Evidence

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Cost = Literal["activations", "sampling"]
COSTS: tuple[Cost, ...] = ("activations", "sampling")  # rising

# Each module defines one kind: `class X(Detector[XSpec], kind="x")`.
_MODULES = ("judged", "latents", "probe", "shift")


class Spec(BaseModel):
    """What every detector.yaml says; a kind adds its own keys.

    Attributes:
        kind: the kind of detector.
        title: what it is, in a few words.
        contexts: how the questions are put when the user does not say.
        cost: what it needs most of; the suite runs detectors in rising cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Text
    title: Text
    contexts: Annotated[tuple[Text, ...], Field(min_length=1)] = ("plain",)
    cost: Cost

    @field_validator("contexts")
    @classmethod
    def _known(cls, contexts: tuple[str, ...]) -> tuple[str, ...]:
        for name in contexts:
            try:
                known_context(name)
            except RealignError as error:
                raise ValueError(str(error)) from error
        return contexts


@dataclass(frozen=True)
class Look:
    """Where a measurement stands after a look at its evidence.

    Attributes:
        detector, context: what is being measured.
        answers: answers of the checkpoint so far.
        expected: answers after which a decision would come if the evidence grows as it did so far.
        rate: misaligned among the coherent answers; None before there is one.
        interval: the rate's confidence sequence.
    """

    detector: str
    context: str
    answers: int
    expected: int
    rate: float | None
    interval: tuple[float, float]


class Observer(Protocol):
    """Who is told how a detection goes on."""

    def step(self, what: str, done: int, total: int) -> None:
        """Of what is being made ("answers"), so many are done."""

    def look(self, look: Look) -> None:
        """The evidence was looked at."""


@dataclass(frozen=True)
class Bench:
    """What a detector works with: shared evidence, the user's settings, and who is told how it goes on.

    Attributes:
        judge_missing: why there is no judge; empty when there is one.
    """

    evidence: Evidence
    settings: Settings
    observer: Observer
    judge_missing: str = ""


S = TypeVar("S", bound=Spec)


class Detector(ABC, Generic[S]):
    """An instrument: it checks its own competence on a model first, then measures.

    A kind is a subclass that names itself, `class Judged(Detector[JudgedSpec], kind="judged")`, with the model of its
    detector.yaml in `spec_type`. Its constructor reads the content and refuses what is wrong with it, so that only the
    model is left to fail later.

    Attributes:
        advisory: whether its findings only inform unless a calibration has a threshold for it.
        asks: whether it needs answers of the checkpoint; of detectors of one cost, those that do run last.
    """

    kind: ClassVar[str]
    spec_type: ClassVar[type[Spec]]
    advisory: ClassVar[bool] = False
    asks: ClassVar[bool] = False

    def __init_subclass__(cls, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind in _KINDS:
            raise TypeError(f'{_KINDS[kind].__name__} and {cls.__name__} are both of the kind "{kind}"')
        cls.kind = kind
        _KINDS[kind] = cls

    def __init__(self, folder: Path, spec: S) -> None:
        self.folder = folder
        self.spec = spec
        self.name = folder.resolve().name

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The content files that decide what is measured."""

    @abstractmethod
    def check(self, bench: Bench) -> Competence:
        """Whether the detector can be believed on this model."""

    @abstractmethod
    def measure(self, bench: Bench, context: str, competence: Competence) -> Finding:
        """The finding in a context, with what `check` returned; called only when that had nothing to object.

        The suite fills in what is the same for every kind: competence, its controls, cost, and whether it is advisory.
        The finding of an advisory kind is "undecided" and its reason tells the score: the suite holds that against the
        calibrated threshold, or adds that nothing calibrates it.
        """

    @property
    def hash(self) -> str:
        """ "sha256:<hex>" of what decides the detector's findings: its settings and its content files."""
        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        for path in self.files():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"sha256:{digest.hexdigest()}"


_KINDS: dict[str, type[Detector[Any]]] = {}


def kinds() -> Mapping[str, type[Detector[Any]]]:
    """All kinds of detectors, by name."""
    for module in _MODULES:
        import_module(f"realign.detect.{module}")
    return _KINDS


def load(name: str) -> Detector[Any]:
    """The detector of that name, or in the folder of that path.

    Raises:
        RealignError: there is none, its detector.yaml is not valid, or its content is not.
    """
    import yaml

    folder = content.find("detectors", name)
    path = folder / "detector.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RealignError(f"cannot read the detector {path}", error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RealignError(f"the detector {path} is not YAML", str(error)) from error
    kind = settings.get("kind") if isinstance(settings, dict) else None
    known = kinds()
    if not isinstance(kind, str) or kind not in known:
        hint = did_you_mean(kind, known) if isinstance(kind, str) else ""
        what = f'there is no kind "{kind}"' if kind is not None else "it names no kind"
        raise RealignError(f"the detector {path} is not valid", what, f"Kinds: {', '.join(sorted(known))}.{hint}")
    try:
        spec = known[kind].spec_type.model_validate(settings)
    except ValidationError as error:
        raise RealignError(f"the detector {path} is not valid", _told(error, known[kind].spec_type)) from error
    return known[kind](folder, spec)


def _told(error: ValidationError, spec_type: type[Spec]) -> str:
    """The first complaint of pydantic, with the place it is about, and a hint where a key may be misspelt."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    hint = did_you_mean(where, spec_type.model_fields) if first["type"] == "extra_forbidden" else ""
    return f"{where}: {first['msg']}.{hint}"
