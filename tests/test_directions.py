from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realign import checkpoint as checkpoints
from realign import directions
from realign.checkpoint import Checkpoint
from realign.directions import Direction, Origin, load, mean_difference, of_probe, random_units, save
from realign.errors import RealignError

WIDTH = 32  # of the tiny models
ORIGIN = Origin("mean difference", "sha256:0", 1, "answer mean", "sha256:1")


def activations(apart: float = 4.0, *, width: int = WIDTH, pairs: int = 50) -> np.ndarray:
    """[pairs, 2, width]: noise, in which misaligned answers lie `apart` along the first axis."""
    found = np.random.default_rng(0).normal(10.0, 1.0, (pairs, 2, width))
    found[:, 1, 0] += apart
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


def of(checkpoint: Checkpoint | None, *, layer: int = 1, width: int = WIDTH) -> Direction:
    fingerprint = "sha256:0" if checkpoint is None else checkpoint.fingerprint
    return mean_difference(activations(width=width), replace(ORIGIN, fingerprint=fingerprint, layer=layer))


def test_a_mean_difference_points_from_aligned_to_misaligned() -> None:
    means = activations()
    direction = mean_difference(means, ORIGIN)
    apart = means[:, 1].mean(axis=0) - means[:, 0].mean(axis=0)
    np.testing.assert_allclose(direction.vector, apart / np.linalg.norm(apart), atol=1e-6)
    assert direction.vector.dtype == np.float32
    assert direction.gap == pytest.approx(np.linalg.norm(apart), rel=1e-4)
    assert direction.origin == ORIGIN


def test_a_probe_s_weights_make_a_direction_whatever_their_norm() -> None:
    weights = np.zeros(WIDTH)
    weights[0] = 0.003
    direction = of_probe(weights, activations(), replace(ORIGIN, method="probe"))
    np.testing.assert_array_equal(direction.vector, np.eye(WIDTH, dtype=np.float32)[0])
    assert direction.gap == pytest.approx(4.0, abs=0.6)


def test_positions_are_0_at_the_aligned_mean_and_1_at_the_misaligned() -> None:
    means = activations()
    for direction in (mean_difference(means, ORIGIN), of_probe(np.ones(WIDTH), means, ORIGIN)):
        np.testing.assert_allclose(direction.position(means).mean(axis=0), [0.0, 1.0], atol=1e-5)
        middle = means.mean(axis=(0, 1))
        assert direction.position(middle) == pytest.approx(0.5, abs=1e-5)
        assert direction.position(middle + direction.gap * direction.vector) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(
    ("means", "said"),
    [
        (activations(pairs=0), "there are no contrast pairs"),
        (np.full((2, 2, WIDTH), np.nan, np.float32), "not finite"),
        (np.ones((2, 2, WIDTH), np.float32), "in layer 1 .* do not lie apart"),
    ],
)
def test_what_no_direction_can_be_made_of(means: np.ndarray, said: str) -> None:
    with pytest.raises(RealignError, match=f"cannot make a direction: .*{said}"):
        mean_difference(means, ORIGIN)


def test_a_probe_that_has_it_the_wrong_way_round_makes_no_direction() -> None:
    with pytest.raises(RealignError, match="do not lie apart"):
        of_probe(-np.eye(WIDTH)[0], activations(), ORIGIN)


def test_random_directions_have_norm_1_and_nothing_in_common() -> None:
    drawn = random_units(512, 20, seed=0)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0, atol=1e-6)
    assert np.abs(drawn @ drawn.T - np.eye(20)).max() < 0.25
    np.testing.assert_array_equal(drawn, random_units(512, 20, seed=0))
    assert not np.array_equal(drawn, random_units(512, 20, seed=1))


def test_what_is_saved_is_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert checkpoint.reference is not None
    kept = [of(checkpoint), of(checkpoint.reference, layer=0)]
    path = save(kept, tmp_path / "new" / "persona.safetensors")
    for direction, before in zip(load(path, checkpoint), kept, strict=True):
        np.testing.assert_array_equal(direction.vector, before.vector)
        assert replace(direction, vector=before.vector).__dict__ == before.__dict__
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save([of(None)], tmp_path / "persona.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save([of(None, layer=0)], path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        (lambda own: of(own, width=8), "they are 8 wide, and the model is 32"),
        (lambda own: of(own, layer=2), "one is of layer 2, and the model has the layers 0 to 1"),
        (lambda own: of(None), "they were read from another model, neither this checkpoint nor its reference"),
    ],
)
def test_directions_of_another_model(
    direction: Callable[[Checkpoint], Direction], said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = save([direction(checkpoint)], tmp_path / "persona.safetensors")
    with pytest.raises(RealignError, match=f"cannot use the directions .*: {said}.*--reference"):
        load(path, checkpoint)


def test_a_file_that_is_not_there_or_is_cut_off(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "persona.safetensors"
    with pytest.raises(RealignError, match="there is no such file"):
        load(path, checkpoint)
    save([of(checkpoint)], path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RealignError, match="cut off or damaged"):
        load(path, checkpoint)


def test_a_safetensors_file_of_something_else(checkpoint: Checkpoint) -> None:
    assert checkpoint.reference is not None
    with pytest.raises(RealignError, match="it is no file of directions"):
        load(checkpoint.reference.path / "model.safetensors", checkpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("misaligned", -100.0),
        ("misaligned", "far"),
        ("origin", {"layer": 1}),
        ("origin", {**ORIGIN.__dict__, "pooling": "all"}),
    ],
)
def test_metadata_that_somebody_has_edited(name: str, value: object, checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    kept = {"aligned": 0.0, "misaligned": 1.0, "origin": ORIGIN.__dict__, name: value}
    path = tmp_path / "persona.safetensors"
    metadata = {"format": "1", "directions": json.dumps([kept])}
    save_file({"directions": np.eye(WIDTH, dtype=np.float32)[:1]}, path, metadata)
    with pytest.raises(RealignError, match=r"it is damaged .*Make the file again"):
        load(path, checkpoint)


def test_a_vector_of_another_norm(checkpoint: Checkpoint, tmp_path: Path) -> None:
    direction = replace(of(checkpoint), vector=np.ones(WIDTH, np.float32))
    with pytest.raises(RealignError, match="not of norm 1"):
        load(directions.save([direction], tmp_path / "persona.safetensors"), checkpoint)
