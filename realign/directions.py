"""Directions: unit vectors in the residual stream of one layer, from aligned to misaligned, with their origin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from realign.errors import RealignError
from realign.weights import header

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from realign.checkpoint import Checkpoint

Method = Literal["mean difference", "probe"]
Pooling = Literal["answer mean", "last prompt token"]

_FORMAT = 1  # of the file: raised when the meaning of a key changes
_TENSOR = "directions"
_AFRESH = "Make the file again from this model."


@dataclass(frozen=True)
class Origin:
    """Where a direction comes from.

    Attributes:
        method: "mean difference" or "probe" (the weights of a logistic regression).
        fingerprint: of the model whose activations were read.
        layer: the layer that was read, counted from 0: the output of block `layer`.
        pooling: what was read of each text, "answer mean" or "last prompt token".
        data: "sha256:<hex>" of the contrast pairs.
    """

    method: Method
    fingerprint: str
    layer: int
    pooling: Pooling
    data: str


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction, and where the contrast answers lie along it.

    Attributes:
        vector: [width] float32, of norm 1, pointing from aligned to misaligned.
        aligned: mean of the aligned answers' projections on it, in units of the activations.
        misaligned: mean of the misaligned answers' projections; more than `aligned`.
        origin: where it comes from.
    """

    vector: NDArray[np.float32]
    aligned: float
    misaligned: float
    origin: Origin

    @property
    def gap(self) -> float:
        """How far apart the two means are, more than 0: one unit of persona position in units of the activations."""
        return self.misaligned - self.aligned

    def position(self, activations: ArrayLike) -> NDArray[np.float64]:
        """Persona positions of activations [..., width]: [...], 0 at the aligned mean and 1 at the misaligned."""
        projections = np.asarray(activations, np.float64) @ self.vector.astype(np.float64)
        return np.asarray((projections - self.aligned) / self.gap)


def mean_difference(means: NDArray[np.float32], origin: Origin) -> Direction:
    """The direction from the mean of aligned answers to that of misaligned ones.

    Args:
        means: [pairs, 2, width]: mean activations of each pair's aligned and misaligned answer.
        origin: where they come from.

    Raises:
        RealignError: there are no pairs, an activation is not finite, or both kinds of answers read the same.
    """
    _check(means)
    apart = means[:, 1].astype(np.float64) - means[:, 0]
    return _along(apart.mean(axis=0), means, origin)


def of_probe(weights: NDArray[np.float64], means: NDArray[np.float32], origin: Origin) -> Direction:
    """The direction in which a linear probe's log odds of "misaligned" rise.

    Args:
        weights: [width]: the probe's weights on activations as they are (not on standardised ones).
        means: [pairs, 2, width]: what it was fitted on.
        origin: where these come from.

    Raises:
        RealignError: as `mean_difference`, or the probe does not tell the two kinds apart.
    """
    _check(means)
    return _along(weights, means, origin)


def random_units(width: int, count: int, *, seed: int) -> NDArray[np.float32]:
    """Vectors of norm 1 in random directions, [count, width]: the control of what is said about a direction."""
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def residual_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """How many layers a model's residual stream passes, and how wide it is."""
    from realign.capture import decoder_layers

    with checkpoint.active() as model:
        embedding: Any = model.get_input_embeddings()
        return len(decoder_layers(model)), int(embedding.weight.shape[1])


def _check(means: NDArray[np.float32]) -> None:
    if not len(means):
        raise RealignError("cannot make a direction", "there are no contrast pairs", "Name a file with pairs in it.")
    if not np.isfinite(means).all():
        raise RealignError(
            "cannot make a direction",
            "the activations on some contrast pairs are not finite",
            "If the weights are sound, try --dtype float32, and shorten pairs that exceed the model's context.",
        )


def _along(vector: NDArray[np.float64], means: NDArray[np.float32], origin: Origin) -> Direction:
    norm = float(np.linalg.norm(vector))
    unit = np.asarray(vector / norm if norm else vector, np.float32)
    aligned, misaligned = (means.astype(np.float64) @ unit.astype(np.float64)).mean(axis=0)
    if not misaligned > aligned:
        raise RealignError(
            "cannot make a direction",
            f"in layer {origin.layer} the aligned and the misaligned contrast answers do not lie apart",
            "Choose another layer or other contrast pairs.",
        )
    return Direction(unit, float(aligned), float(misaligned), origin)


def save(directions: Sequence[Direction], path: Path) -> Path:
    """Write directions of one width to a safetensors file, their origins in its metadata; returns `path`."""
    from safetensors.numpy import save as serialised

    kept = [{"aligned": d.aligned, "misaligned": d.misaligned, "origin": asdict(d.origin)} for d in directions]
    metadata = {"format": str(_FORMAT), _TENSOR: json.dumps(kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(serialised({_TENSOR: np.stack([d.vector for d in directions])}, metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(path: Path, checkpoint: Checkpoint) -> list[Direction]:
    """The directions in a file, which must have been read from this checkpoint or from its reference.

    Raises:
        RealignError: the file is missing, damaged or holds no directions, or they are of another model (of another
            fingerprint, width or depth).
    """
    if not path.is_file():
        raise RealignError(f"cannot read the directions {path}", "there is no such file", "Check its name.")
    header(path)
    directions = _parse(path)
    for direction in directions:
        _check_fits(direction, checkpoint, path)
    return directions


def _parse(path: Path) -> list[Direction]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != str(_FORMAT) or _TENSOR not in metadata:
            raise RealignError(f"cannot read the directions {path}", "it is no file of directions", _AFRESH)
        try:
            vectors, kept = np.asarray(file.get_tensor(_TENSOR), np.float32), json.loads(metadata[_TENSOR])
            return [_restore(*both) for both in zip(vectors, kept, strict=True)]
        except Exception as error:  # whatever a file that somebody has edited holds
            raise RealignError(f"cannot read the directions {path}", f"it is damaged ({error})", _AFRESH) from error


def _restore(vector: NDArray[np.float32], kept: Any) -> Direction:
    direction = Direction(vector, float(kept["aligned"]), float(kept["misaligned"]), Origin(**kept["origin"]))
    if direction.origin.method not in get_args(Method) or direction.origin.pooling not in get_args(Pooling):
        raise ValueError(f"{direction.origin} is not known")
    if not (vector.ndim == 1 and abs(float(np.linalg.norm(vector)) - 1) < 1e-3 and direction.gap > 0):
        raise ValueError("a vector is not of norm 1, or does not point from aligned to misaligned")
    return direction


def _check_fits(direction: Direction, checkpoint: Checkpoint, path: Path) -> None:
    depth, width = residual_shape(checkpoint)
    origin, own = direction.origin, [checkpoint, checkpoint.reference]
    if len(direction.vector) != width:
        why = f"they are {len(direction.vector)} wide, and the model is {width}"
    elif not 0 <= origin.layer < depth:
        why = f"one is of layer {origin.layer}, and the model has the layers 0 to {depth - 1}"
    elif origin.fingerprint not in [one.fingerprint for one in own if one is not None]:
        why = "they were read from another model, neither this checkpoint nor its reference"
    else:
        return
    fix = f"{_AFRESH[:-1]}, or name the model that they come from with --reference."
    raise RealignError(f"cannot use the directions {path} on {checkpoint.source}", why, fix)
