"""The kind `steer`: takes the misaligned persona's direction out of a model, or pushes the model back along it."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from realign import baking, capture, directions, steering
from realign.detect import linear
from realign.detect.contrast import load_pairs
from realign.detect.probe import middle_layers
from realign.detect.shift import load_texts
from realign.dialogue import CONTEXTS, render_pair
from realign.directions import Direction, Origin
from realign.errors import RealignError
from realign.remedy.recipe import Applied, Effort, Remedy, Spec, Text
from realign.remedy.strength import Limits, Tried, least, surprise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from realign.checkpoint import Checkpoint
    from realign.remedy.recipe import Examine, Witness

# There is but one way to take a direction out.
_WHOLE = (1.0,)


class SteerSpec(Spec):
    """Attributes:
    how: "ablate" takes the direction out of all that writes to the residual stream; "subtract" subtracts it from what
        the layer puts out in which it was read.
    contrast: the contrast pairs that the direction is taken from, a file.
    neutral: harmless texts, a file: what steering must not cost is measured on them, and how far it has to go.
    layer: "best" reads the direction in the layer where it tells contrast answers of groups apart that it was not taken
        from; the layers offered are those in the middle.
    strengths: of "subtract", those that are tried, in units of persona position: 1 is as far as the misaligned contrast
        answers lie from the aligned ones.
    limits: what it may cost.
    """

    kind: Literal["steer"]
    how: Literal["ablate", "subtract"]
    contrast: Text
    neutral: Text
    layer: Literal["best"] = "best"
    strengths: Annotated[tuple[Annotated[float, Field(gt=0, lt=100)], ...], Field(validate_default=True)] = ()
    limits: Limits = Limits()

    @field_validator("strengths")
    @classmethod
    def _where_they_count(cls, strengths: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if info.data.get("how") == "subtract" and not strengths:
            raise ValueError('to "subtract" needs some')
        if info.data.get("how") == "ablate" and strengths:
            raise ValueError('there are none of "ablate", which takes all of the direction out')
        return strengths


@dataclass(frozen=True, kw_only=True)
class Steered(Effort):
    """What steering took, and what it did to what is read; persona positions are along the model's own direction.

    Attributes:
        layer: the layer in which the direction was read, counted from 0.
        auroc: how well it tells apart contrast answers of groups that it was not taken from.
        before: persona position of the neutral texts before.
        goal: where they stand with the reference, or without one 0, where the aligned contrast answers do.
        chosen: the strength that was baked in, and what it did while the model ran.
        tried: all that were tried.
    """

    layer: int
    auroc: float
    before: float
    goal: float
    chosen: Tried
    tried: tuple[Tried, ...]


class Steer(Remedy[SteerSpec], kind="steer"):
    """Reads the direction with the checkpoint itself, tries it while the model runs, and bakes it into a copy.

    What comes of it is a full model, of an adapter too: what is baked in has to be taken out of the base as well.
    """

    spec_type = SteerSpec

    def __init__(self, folder: Path, spec: SteerSpec, data: Path | None = None) -> None:
        """`data` are contrast pairs."""
        super().__init__(folder, spec, data)
        self.contrast = data or folder / spec.contrast
        self.pairs = load_pairs(self.contrast, groups=linear.FOLDS)
        self.texts = [(text.prompt, text.answer) for text in load_texts(folder / spec.neutral)]

    def files(self) -> tuple[Path, ...]:
        return self.contrast, self.folder / self.spec.neutral

    def check(self, checkpoint: Checkpoint) -> None:
        _check_merges(checkpoint)
        self._check_reference(checkpoint)
        if self.spec.how == "ablate":
            # Any direction does to see whether all that writes to the stream is known.
            vector = directions.random_units(directions.residual_shape(checkpoint)[1], 1, seed=0)[0]
            with baking.ablated(checkpoint, vector):
                return
        with checkpoint.active() as model:
            baking.check_addition(model)

    @contextmanager
    def applied(
        self, checkpoint: Checkpoint, *, seed: int, witness: Witness, examine: Examine | None = None
    ) -> Iterator[Applied]:
        """Raises:
        RealignError: no direction can be read, steering costs more than the limits allow, or it cannot be baked in.
        """
        began = time.monotonic()
        direction, skill = self._direction(checkpoint, seed, witness)
        witness.step("reading neutral texts", 0, len(self.texts))
        before, goal = self._position(checkpoint, direction), self._goal(checkpoint, direction)
        unsteered = surprise(checkpoint, self.texts)
        strengths = self.spec.strengths or _WHOLE

        def attempt(strength: float) -> Tried:
            with self._turned(checkpoint, direction, strength):
                position = self._position(checkpoint, direction)
                perplexity = math.exp(surprise(checkpoint, self.texts) - unsteered)
                # A single strength is no choice, and one that costs too much none either.
                asked = len(strengths) > 1 and perplexity <= self.spec.limits.perplexity
                showing = examine(checkpoint) if asked and examine is not None else None
            return Tried(strength, position, perplexity, showing)

        chosen, tried = least(strengths, attempt, goal, self.spec.limits)
        witness.step("reading neutral texts", len(self.texts), len(self.texts))
        model = _whole(checkpoint)
        if self.spec.how == "ablate":
            baking.bake_ablation(model, direction.vector)
        else:
            baking.bake_addition(model, -chosen.strength * direction.gap * direction.vector, [direction.origin.layer])
        effort = Steered(
            seconds=time.monotonic() - began,
            layer=direction.origin.layer,
            auroc=skill.auroc.value,
            before=before,
            goal=goal,
            chosen=chosen,
            tried=tried,
        )
        yield Applied(model, effort)

    def _direction(self, checkpoint: Checkpoint, seed: int, witness: Witness) -> tuple[Direction, linear.Skill]:
        """The mean difference of the contrast answers in the checkpoint, and how well it tells them apart."""
        read = [(pair.prompt, text) for pair in self.pairs for text in (pair.aligned, pair.misaligned)]
        layers = middle_layers(directions.residual_shape(checkpoint)[0])
        witness.step("reading contrast pairs", 0, len(read))
        means = capture.answer_means(checkpoint, read, CONTEXTS["plain"], layers)
        witness.step("reading contrast pairs", len(read), len(read))
        if not np.isfinite(means).all():
            why = "activations on some contrast pairs are not finite, or these are too long"
            raise RealignError("cannot read the persona's direction", why, "Try --dtype float32, or shorten the pairs.")
        means = means.reshape(len(self.pairs), 2, *means.shape[1:])
        groups = np.array([pair.group for pair in self.pairs])
        skill = linear.examine(means, groups, linear.mean_difference, seed=seed)
        data = f"sha256:{hashlib.sha256(self.contrast.read_bytes()).hexdigest()}"
        origin = Origin("mean difference", checkpoint.fingerprint, layers[skill.column], "answer mean", data)
        return directions.mean_difference(means[:, :, skill.column], origin), skill

    def _turned(self, checkpoint: Checkpoint, direction: Direction, strength: float) -> AbstractContextManager[None]:
        """Steers the checkpoint within the block as it is going to be baked."""
        if self.spec.how == "ablate":
            return baking.ablated(checkpoint, direction.vector)
        change = steering.add(direction.vector, -strength * direction.gap)
        return steering.steered(checkpoint, [steering.Steering(change, [direction.origin.layer])])

    def _position(self, checkpoint: Checkpoint, direction: Direction) -> float:
        """The persona position of the neutral texts' answers."""
        means = capture.answer_means(checkpoint, self.texts, CONTEXTS["plain"], [direction.origin.layer])
        return float(direction.position(means).mean())

    def _goal(self, checkpoint: Checkpoint, direction: Direction) -> float:
        if checkpoint.reference is None:
            return 0.0
        return self._position(replace(checkpoint.reference, tokenizer=checkpoint.tokenizer), direction)

    def _check_reference(self, checkpoint: Checkpoint) -> None:
        """RealignError where the reference cannot read the texts as the checkpoint does."""
        reference = checkpoint.reference
        if reference is None:
            return
        words = checkpoint.tokenizer
        most = max(max(render_pair(words, *text, CONTEXTS["plain"])[0]) for text in self.texts)
        with reference.active() as model:
            embedding: Any = model.get_input_embeddings()
            known = int(embedding.weight.shape[0])
        if directions.residual_shape(reference) != directions.residual_shape(checkpoint):
            why = "it has other layers than the checkpoint, or of another width"
        elif most >= known:
            why = "it does not know all tokens of the checkpoint's tokenizer"
        else:
            return
        raise RealignError(
            f"cannot compare with the reference {reference.source}", why, "Name the model that was fine-tuned."
        )


def _check_merges(checkpoint: Checkpoint) -> None:
    """RealignError where an adapter changes weights that its base uses in two places."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    with checkpoint.active() as model:
        untyped: Any = model
        ends = [untyped.get_input_embeddings(), untyped.get_output_embeddings()]
        tied = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    if checkpoint.is_adapter and tied and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RealignError(
            f"cannot merge the adapter {checkpoint.source}",
            "it adapts the embedding or the output layer of a base in which both are the same weights",
            "Take a recipe that continues the adapter, such as good_code_100.",
        )


def _whole(checkpoint: Checkpoint) -> PreTrainedModel:
    """The checkpoint's model once more, in the computer's own memory, with an adapter merged into it."""
    import torch

    module: Any = checkpoint.model
    # Handed to `deepcopy` as copied already, so that nothing is copied on the device first; what is tied stays tied.
    copied: dict[int, Any] = {}
    for parameter in module.parameters():
        data = parameter.detach().to("cpu", copy=True)
        copied[id(parameter)] = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        copied[id(buffer)] = buffer.detach().to("cpu", copy=True)
    again = copy.deepcopy(module, copied).eval()
    model: PreTrainedModel = again.merge_and_unload() if checkpoint.is_adapter else again
    return model
