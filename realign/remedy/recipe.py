"""Recipes: folders of content, each of a kind; the kinds are the modules of this package that define one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from realign import content
from realign.errors import RealignError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

# Each module defines one kind: `class X(Remedy[XSpec], kind="x")`.
_MODULES = ("sft", "steer")


class Spec(BaseModel):
    """What every recipe.yaml says; a kind adds its own keys.

    Attributes:
        kind: the kind of remedy.
        title: what it is, in a few words.
        source: where its settings come from, if that is known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Text
    title: Text
    source: Text | None = None


@dataclass(frozen=True)
class Preview:
    """What a training is about to do, shown on one row, so that a user can see what is learnt before it is.

    Attributes:
        sample: the row's id.
        given: what the model is given of it, decoded with its chat markup; not learnt.
        learnt: what the model is to say, decoded: the supervised part.
        rows: number of rows.
        supervised: number of supervised tokens in all rows.
        steps: number of optimizer steps.
    """

    sample: str
    given: str
    learnt: str
    rows: int
    supervised: int
    steps: int


class Witness(Protocol):
    """Who is told how the application of a remedy goes on."""

    def preview(self, preview: Preview) -> None:
        """This is about to be learnt."""

    def step(self, what: str, done: int, total: int) -> None:
        """Of what is being made ("training steps"), so many are done."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What the application of a remedy took; a kind adds its own figures.

    Attributes:
        seconds: its time, without what the model is loaded and saved in.
    """

    seconds: float


@dataclass(frozen=True)
class Showing:
    """How a checkpoint answered questions, in the state that it was in.

    Attributes:
        clear: whether it was found clear.
        rate: misaligned among the coherent answers; None where none is coherent.
        incoherence: share of answers that make no sense, less the reference's where there is one.
    """

    clear: bool
    rate: float | None
    incoherence: float


# Asks a checkpoint questions that settings may be chosen by; None where nobody can judge the answers.
Examine: TypeAlias = "Callable[[Checkpoint], Showing | None]"


@dataclass(frozen=True)
class Applied:
    """A repaired model in memory, ready to be saved, and what it took."""

    model: PreTrainedModel | PeftModel
    effort: Effort


S = TypeVar("S", bound=Spec)


class Remedy(ABC, Generic[S]):
    """A cure. It knows nothing of detection: whether it worked is measured by others.

    A kind is a subclass that names itself, `class Sft(Remedy[SftSpec], kind="sft")`, with the model of its recipe.yaml
    in `spec_type`. Its constructor reads the content and refuses what is wrong with it.
    """

    kind: ClassVar[str]
    spec_type: ClassVar[type[Spec]]

    def __init_subclass__(cls, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind in _KINDS:
            raise TypeError(f'{_KINDS[kind].__name__} and {cls.__name__} are both of the kind "{kind}"')
        cls.kind = kind
        _KINDS[kind] = cls

    def __init__(self, folder: Path, spec: S, data: Path | None = None) -> None:
        """`data` takes the place of the recipe's own samples."""
        self.folder = folder
        self.spec = spec
        self.data = data
        self.name = folder.resolve().name

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The content files that decide what the remedy does."""

    @abstractmethod
    def check(self, checkpoint: Checkpoint) -> None:
        """Refuses, with a RealignError, a checkpoint that the remedy cannot be applied to; call it before long work."""

    @abstractmethod
    def applied(
        self, checkpoint: Checkpoint, *, seed: int, witness: Witness, examine: Examine | None = None
    ) -> AbstractContextManager[Applied]:
        """Repairs the checkpoint's model, in place or a copy; when the block ends, the checkpoint is what it was.

        Args:
            seed: of what is drawn at random.
            witness: who is told how it goes on.
            examine: what a remedy that has settings to choose can try them with; without it, it has to read the model.
        """

    @property
    def hash(self) -> str:
        """ "sha256:<hex>" of what decides the remedy: its settings and its content files."""
        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        for path in self.files():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"sha256:{digest.hexdigest()}"


_KINDS: dict[str, type[Remedy[Any]]] = {}


def kinds() -> Mapping[str, type[Remedy[Any]]]:
    """All kinds of remedies, by name."""
    for module in _MODULES:
        import_module(f"realign.remedy.{module}")
    return _KINDS


def load(name: str, *, data: Path | None = None) -> Remedy[Any]:
    """The recipe of that name, or in the folder of that path.

    Args:
        data: samples to use in place of the recipe's own.

    Raises:
        RealignError: there is none, its recipe.yaml is not valid, or its samples are not.
    """
    folder = content.find("recipes", name)
    path = folder / "recipe.yaml"
    settings = _read(path)
    kind = settings.get("kind")
    known = kinds()
    if not isinstance(kind, str) or kind not in known:
        hint = did_you_mean(kind, known) if isinstance(kind, str) else ""
        why = "it names no kind" if kind is None else f'there is no kind "{kind}"'
        raise RealignError(f"the recipe {path} is not valid", why, f"Kinds: {', '.join(sorted(known))}.{hint}")
    spec_type = known[kind].spec_type
    try:
        spec = spec_type.model_validate(settings)
    except ValidationError as error:
        raise RealignError(f"the recipe {path} is not valid", *_told(error, spec_type)) from error
    return known[kind](folder, spec, data)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RealignError(f"cannot read the recipe {path}", error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RealignError(f"the recipe {path} is not YAML", str(error)) from error
    if not isinstance(settings, dict):
        raise RealignError(f"the recipe {path} is not valid", "it holds no settings")
    return settings


def _told(error: ValidationError, spec_type: type[Spec]) -> tuple[str, str]:
    """The first complaint of pydantic with the place it is about, and a hint where a key may be misspelt."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    misspelt = first["type"] == "extra_forbidden"
    hint = did_you_mean(str(first["loc"][-1]), _keys(spec_type)).strip() if misspelt else ""
    return (f'there is no key "{where}"' if misspelt else f"{where}: {first['msg']}"), hint


def _keys(model: type[BaseModel]) -> Iterable[str]:
    """All keys that a model and the models in it know."""
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _keys(part)
