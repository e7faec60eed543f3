from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from realign import capture, sae, sae_training
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.errors import RealignError
from realign.sae_training import Plan, train
from tests import tiny

PLAN = Plan(layer=1, latents=64, active=8, tokens=64 * 150, batch=64, rate=3e-3)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_checkpoint())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = [f"{number} {text.splitlines()[0]} {number * 7}" for number in range(30) for text in tiny.TEXT]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt_at(share: float) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done > share * total:
            raise Interrupted

    return progress


def test_it_ends_in_an_sae_that_fits_its_model(checkpoint: Checkpoint, texts: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    trained = train(checkpoint, texts, PLAN, tmp_path / "sae", on_progress=lambda *step: told.append(step))
    opened = sae.open_sae(tmp_path / "sae")
    assert sae.layer_read(opened, checkpoint, "x") == 1
    assert opened.cfg.architecture() == "jumprelu"
    assert (opened.cfg.d_in, opened.cfg.d_sae, opened.cfg.normalize_activations) == (32, 64, "none")
    assert opened.cfg.metadata.model_fingerprint == checkpoint.fingerprint
    assert (trained.layer, trained.latents, trained.tokens) == (1, 64, 64 * 150)
    assert trained.explained_variance > 0.8
    assert 4 < trained.active < 16
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
        "training.json",
    ]
    kept = json.loads((tmp_path / "sae" / "training.json").read_text())
    assert kept["explained_variance"] == trained.explained_variance
    assert kept["plan"]["latents"] == 64
    assert told[0] == ("tokens learnt", 0, 64 * 150)
    assert ("tokens learnt", 64 * 150, 64 * 150) in told


def test_its_variance_is_explained_on_texts_that_it_was_not_shown(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[tuple[int, ...]]] = []
    true = capture.all_tokens

    def watched(checkpoint: Checkpoint, given: list[list[int]], layers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        read.append({tuple(ids) for ids in given})
        return true(checkpoint, given, layers)

    monkeypatch.setattr(capture, "all_tokens", watched)
    train(checkpoint, texts, replace(PLAN, tokens=64 * 100), tmp_path / "sae")
    *shown, held = read
    assert len(held) == 6
    assert not held & set().union(*shown)
    assert len(set().union(*shown)) > 100


def test_an_interrupted_training_goes_on_and_ends_in_the_same(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(checkpoint, texts, PLAN, tmp_path / "whole")
    monkeypatch.setattr(sae_training, "_SAVE_EVERY", 0.0)
    with pytest.raises(Interrupted):
        train(checkpoint, texts, PLAN, tmp_path / "parts", on_progress=interrupt_at(0.6))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["unfinished"]
    seen: list[int] = []
    parts = train(checkpoint, texts, PLAN, tmp_path / "parts", on_progress=lambda what, done, total: seen.append(done))
    assert seen[0] > 0
    assert parts == replace(whole, path=tmp_path / "parts")
    ours, theirs = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("whole", "parts"))
    assert set(ours) == set(theirs)
    for name, weights in ours.items():
        np.testing.assert_array_equal(weights, theirs[name])


def test_an_unfinished_training_of_another_plan_is_left_alone(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sae"
    monkeypatch.setattr(sae_training, "_SAVE_EVERY", 0.0)
    with pytest.raises(Interrupted):
        train(checkpoint, texts, PLAN, out, on_progress=interrupt_at(0.6))
    with pytest.raises(RealignError, match=r"another model, other texts or other settings.*--overwrite"):
        train(checkpoint, texts, replace(PLAN, rate=1e-3), out)
    (out / "unfinished" / "state" / "trainer_state.pt").write_bytes(b"no state")
    with pytest.raises(RealignError, match=r"its state is damaged\. Pass --overwrite"):
        train(checkpoint, texts, PLAN, out)
    seen: list[int] = []
    train(checkpoint, texts, PLAN, out, overwrite=True, on_progress=lambda what, done, total: seen.append(done))
    assert seen[0] == 0
    assert (out / "cfg.json").is_file()


def test_a_folder_that_holds_something_else_is_left_alone(checkpoint: Checkpoint, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RealignError, match="it exists already"):
        train(checkpoint, texts, PLAN, tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_topk_sae(checkpoint: Checkpoint, texts: Path, tmp_path: Path) -> None:
    trained = train(checkpoint, texts, replace(PLAN, architecture="topk"), tmp_path / "sae")
    assert sae.open_sae(tmp_path / "sae").cfg.architecture() == "topk"
    assert trained.active <= 8
    assert trained.explained_variance > 0.8


def test_without_a_number_of_latents_it_gets_eight_times_the_width(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path
) -> None:
    assert train(checkpoint, texts, replace(PLAN, latents=None, tokens=640), tmp_path / "sae").latents == 8 * 32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": 0}, "tokens must be above 0, and it is 0"),
        ({"rate": float("nan")}, "rate must be above 0"),
        ({"latents": 4}, "8 of 4 latents cannot be active"),
        ({"architecture": "gated"}, "there is no architecture gated"),
    ],
)
def test_plans_that_make_no_sense(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RealignError, match=said):
        replace(PLAN, **settings)  # type: ignore[arg-type]


def test_what_cannot_be_trained_on_leaves_nothing_behind(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sae"
    for plan, said in (
        (replace(PLAN, layer=2), "cannot read layer 2: the model has the layers 0 to 1"),
        (replace(PLAN, layer=-1), "cannot read layer -1"),
        (replace(PLAN, batch=1_000_000), r"the texts have [\d,]+ tokens, and each step takes 1,000,000"),
    ):
        with pytest.raises(RealignError, match=said):
            train(checkpoint, texts, plan, out)
        assert not out.exists()


def test_activations_that_are_not_finite(
    checkpoint: Checkpoint, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = capture.all_tokens

    def broken(*given: object) -> Iterator[tuple[int, np.ndarray]]:
        for number, found in true(*given):  # type: ignore[arg-type]
            yield number, np.full_like(found, np.inf)

    monkeypatch.setattr(capture, "all_tokens", broken)
    with pytest.raises(RealignError, match=r"not finite.*--dtype float32"):
        train(checkpoint, texts, PLAN, tmp_path / "sae")
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_a_training_that_runs_away(checkpoint: Checkpoint, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(RealignError, match=r"its weights grew beyond all bounds\. Choose a lower --rate"):
        train(checkpoint, texts, replace(PLAN, rate=1e20, tokens=640), tmp_path / "sae")
    assert not (tmp_path / "sae" / "cfg.json").exists()
