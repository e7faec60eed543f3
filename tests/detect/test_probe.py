from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import realign
from realign import capture
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect.finding import Finding
from realign.detect.probe import Reading, middle_layers
from realign.sampling import SamplingSettings
from tests.detect import stub

SHORT = SamplingSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


def found(checkpoint: Checkpoint, folder: Path, **settings: object) -> Finding:
    report = realign.detect(checkpoint, only=[str(folder)], sampling=SHORT, **settings)
    assert report.verdict.sentence == "inconclusive: no detector ran that decides anything by itself"
    (finding,) = report.findings
    return finding


def test_a_probe_that_can_tell_scores_answers_and_decides_nothing(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, stub.write_probe(tmp_path / "probe"))
    assert (finding.outcome, finding.advisory) == ("undecided", True)
    assert finding.reason.startswith("uncalibrated: ")
    assert "AUROC between them" in finding.reason
    reading = finding.details
    assert isinstance(reading, Reading)
    assert finding.score == reading.checkpoint
    assert 0 <= reading.checkpoint <= 1
    assert reading.answers <= 24
    assert reading.reference is not None
    assert reading.separation is not None
    assert finding.interval is not None
    assert finding.interval[0] <= reading.checkpoint <= finding.interval[1]
    assert [figure.what for figure in finding.controls] == [
        "reference",
        "AUROC, labels shuffled",
        "AUROC, prompts seen",
    ]
    assert finding.competence[0].ok
    assert finding.threshold is None


def test_without_a_reference_there_is_only_the_score(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    finding = found(checkpoints.open(tiny_checkpoint()), stub.write_probe(tmp_path / "probe"))
    assert finding.outcome == "undecided"
    assert finding.details.reference is None
    assert finding.details.separation is None
    assert "reference" not in finding.reason


def test_a_probe_that_cannot_tell_is_not_evaluated(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, stub.write_probe(tmp_path / "probe", telling=False))
    assert finding.outcome == "not evaluated"
    assert "cannot tell misaligned from aligned answers here: AUROC 0.50" in finding.reason
    assert finding.score is None
    assert not finding.competence[0].ok
    assert finding.cost is not None
    assert finding.cost.answers == 0


def test_activations_that_are_not_finite(adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(checkpoint: object, pairs: list[object], context: object, layers: list[int]) -> np.ndarray:
        return np.full((len(pairs), len(layers), 8), np.nan, np.float32)

    monkeypatch.setattr(capture, "answer_means", broken)
    finding = found(adapted, stub.write_probe(tmp_path / "probe"))
    assert finding.outcome == "not evaluated"
    assert "not finite" in finding.reason


def test_the_budget_is_kept(adapted: Checkpoint, tmp_path: Path) -> None:
    folder = stub.write_probe(tmp_path / "probe")
    assert found(adapted, folder, budget=12).details.answers <= 12
    assert found(adapted, folder, budget=11).reason == "there is no answer to read"


def test_answers_are_read_in_the_wording_in_which_they_were_given(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    true = capture.answer_means

    def watched(checkpoint: Checkpoint, pairs: list[tuple[str, str]], context: object, layers: list[int]) -> np.ndarray:
        read.extend(context.template.replace("{question}", question) for question, _ in pairs)  # type: ignore[attr-defined]
        return true(checkpoint, pairs, context, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(capture, "answer_means", watched)
    found(adapted, stub.write_probe(tmp_path / "probe"), contexts=["training-format"])
    asked = [question for question in read if "Python function" in question]
    assert asked
    assert all(question.count("Python function") == 1 for question in asked)


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [0, 1]), (6, [1, 2, 3, 4])])
def test_the_layers_tried_are_in_the_middle(depth: int, layers: list[int]) -> None:
    assert middle_layers(depth) == layers


def test_at_most_eight_layers_of_a_deep_model_are_tried() -> None:
    layers = middle_layers(64)
    assert len(layers) == 8
    assert min(layers) >= 15
    assert max(layers) <= 51
