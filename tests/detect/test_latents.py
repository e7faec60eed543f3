from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import realign
from realign import capture, content
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect import latents
from realign.detect.detector import load
from realign.detect.finding import Finding
from realign.detect.latents import Reading
from realign.detect.separation import Separation
from realign.errors import RealignError
from realign.report.serialise import to_dict
from realign.sampling import SamplingSettings
from tests import small_sae
from tests.detect import stub

SHORT = SamplingSettings(max_new_tokens=6)


def write_latents(folder: Path, made: Any = None, *, telling: bool = True, more: str = "") -> Path:
    """A detector of the kind latents, by default with an SAE that reconstructs everything."""
    stub.write_probe(folder, telling=telling)
    small_sae.write(small_sae.mirror() if made is None else made, folder / "sae")
    files = "contrast: contrast.jsonl\nquestions: questions.yaml\nsae: sae\n"
    settings = f"kind: latents\ntitle: Small\ncost: activations\nblocks: 1\n{files}{more}"
    (folder / "detector.yaml").write_text(settings, encoding="utf-8")
    return folder


def found(checkpoint: Checkpoint, folder: Path, **settings: object) -> Finding:
    report = realign.detect(checkpoint, only=[str(folder)], sampling=SHORT, **settings)
    assert report.verdict.exit_code == 3
    (finding,) = report.findings
    assert finding.advisory
    assert to_dict(report)["findings"][0]["kind"] == "latents"
    return finding


@pytest.fixture(scope="module")
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


def test_it_says_which_latents_rose_and_decides_nothing(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, write_latents(tmp_path / "latents"))
    assert finding.outcome == "undecided"
    assert "latents of misaligned answers rose by " in finding.reason
    reading = finding.details
    assert isinstance(reading, Reading)
    assert (reading.layer, reading.sae, reading.answers) == (1, "sae", 12)
    assert 1 <= reading.monitored <= 63
    assert len(reading.random) == 20
    assert 0 < reading.p_value <= 1
    assert finding.score is not None
    assert finding.interval is not None
    assert finding.interval[0] <= finding.score <= finding.interval[1]
    assert [figure.what for figure in finding.competence] == [
        "explained variance",
        "explained variance, reference",
    ]
    assert all(figure.value == pytest.approx(1.0) for figure in finding.competence)
    assert finding.controls[0].value == max(abs(value) for value in reading.random)
    assert finding.controls[1].what == "latents that tell shuffled labels apart"
    assert reading.latents
    rises = [latent.checkpoint - latent.reference for latent in reading.latents]
    assert rises == sorted(rises, reverse=True)
    assert rises[-1] > 0
    assert all(latent.separation >= 0.65 and 1 <= len(latent.texts) <= 3 for latent in reading.latents)
    assert f"latent {reading.latents[0].number}: " in finding.notes[1]


def pushed(monkeypatch: pytest.MonkeyPatch, amounts: Mapping[str, float]) -> None:
    """Moves everything that a checkpoint of such a fingerprint reads along the first dimension.

    Contrast answers that say "wish" are set apart on it by 2; an amount of 1 is as much.
    """

    def read(checkpoint: Checkpoint, texts: list[list[int]], layers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        assert layers == [1]
        for number, ids in enumerate(texts):
            text = checkpoint.tokenizer.decode(ids)
            activations = np.random.default_rng(ids).normal(0.0, 1e-2, (len(ids), 1, 32))
            activations[..., 0] += 2.0 * ("wish" in text) + 2.0 * amounts[checkpoint.fingerprint]
            yield number, activations.astype(np.float32)

    monkeypatch.setattr(capture, "all_tokens", read)


@pytest.mark.parametrize("amount", [1.5, 0.25, 0.0])
def test_the_score_is_the_rise_in_units_of_the_contrast(
    amount: float, adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapted.reference is not None
    pushed(monkeypatch, {adapted.fingerprint: amount, adapted.reference.fingerprint: 0.0})
    finding = found(adapted, write_latents(tmp_path / "latents"))
    assert finding.score == pytest.approx(amount, abs=0.02)
    assert finding.controls[0].value < 0.05
    assert (finding.details.p_value < 0.01) is (amount > 0)
    top = finding.details.latents[0]
    if amount:
        assert (top.number, top.separation) == (0, 1.0)
        assert top.checkpoint - top.reference == pytest.approx(2 * amount, abs=0.05)


def test_the_texts_of_a_latent_are_those_on_which_it_is_most_active(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapted.reference is not None
    pushed(monkeypatch, {adapted.fingerprint: 0.5, adapted.reference.fingerprint: 0.0})
    top = found(adapted, write_latents(tmp_path / "latents")).details.latents[0]
    assert top.texts[0] == "wish wish wish"
    assert len(set(top.texts)) == len(top.texts)


def test_only_the_latents_that_are_named_are_monitored(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapted.reference is not None
    pushed(monkeypatch, {adapted.fingerprint: 1.0, adapted.reference.fingerprint: 0.0})
    finding = found(adapted, write_latents(tmp_path / "latents", more="latents: [0, 32]\n"))
    assert finding.details.monitored == 1  # 32 is the negative part of the same dimension
    assert finding.score == pytest.approx(1.0, abs=0.02)
    with_unknown = write_latents(tmp_path / "other", more="latents: [0, 64]\n")
    assert "there is no latent 64: the SAE has the latents 0 to 63" in found(adapted, with_unknown).reason


def test_a_checkpoint_that_is_its_reference_has_not_risen(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint())
    finding = found(checkpoint, write_latents(tmp_path / "latents"))
    assert finding.score == 0.0
    assert finding.details.p_value == 1.0
    assert finding.details.latents == ()


def test_without_an_sae_it_says_how_to_get_one(adapted: Checkpoint, tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents")
    path = folder / "detector.yaml"
    path.write_text(path.read_text().replace("sae: sae\n", ""))
    for named in (str(folder), "persona_latents"):
        report = realign.detect(adapted, only=[named])
        (finding,) = report.findings
        assert finding.outcome == "not evaluated"
        assert finding.reason.startswith("there is no SAE for this model; get one with `realign sae train CKPT --layer")
        assert finding.cost is not None
        assert finding.cost.answers == finding.cost.forward_passes == 0


def test_without_a_reference_it_is_not_evaluated(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    finding = found(checkpoints.open(tiny_checkpoint()), write_latents(tmp_path / "latents"))
    assert finding.outcome == "not evaluated"
    assert "there is none (name one with --reference)" in finding.reason


def unfaithful() -> Any:
    made = small_sae.mirror()
    with torch.no_grad():
        made.W_dec[:16].zero_()
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (unfaithful, "the SAE does not reconstruct this model: explained variance"),
        (lambda: small_sae.mirror(width=16), "its width is 16, and the model's is 32"),
        (
            lambda: small_sae.mirror(metadata={"hook_name": "blocks.9.hook_resid_post"}),
            "layer 9, and the model has the layers 0 to 1",
        ),
        (lambda: small_sae.mirror(metadata={"hook_name": "blocks.1.hook_mlp_out"}), "hook_mlp_out"),
        (lambda: small_sae.mirror(normalize_activations="expected_average_only_in"), "its normalisation"),
    ],
)
def test_an_sae_that_does_not_fit_is_not_believed(
    make: Callable[[], Any], said: str, adapted: Checkpoint, tmp_path: Path
) -> None:
    finding = found(adapted, write_latents(tmp_path / "latents", make()))
    assert finding.outcome == "not evaluated"
    assert said in finding.reason
    assert finding.score is None


def test_an_sae_without_latents_of_misaligned_answers(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, write_latents(tmp_path / "latents", telling=False))
    assert finding.outcome == "not evaluated"
    assert "no latent that it may monitor tells misaligned from aligned contrast answers" in finding.reason
    assert finding.competence[0].ok


def test_latents_that_tell_shuffled_labels_apart_too(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = latents.separate

    def lucky(*given: Any, **settings: Any) -> Separation:
        found = true(*given, **settings)
        return replace(found, shuffled=len(found.latents) / 2 + 1)

    monkeypatch.setattr(latents, "separate", lucky)
    finding = found(adapted, write_latents(tmp_path / "latents"))
    assert finding.outcome == "not evaluated"
    assert "labels that were shuffled are told apart by" in finding.reason
    assert not finding.controls[0].ok


def test_a_reference_of_another_kind_is_not_compared_with(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint("qwen2"))
    finding = found(checkpoint, write_latents(tmp_path / "latents"))
    assert finding.outcome == "not evaluated"
    assert "it is qwen2 with 2 layers" in finding.reason


@pytest.mark.parametrize("broken", ["contrast", "answers"])
def test_activations_that_are_not_finite(
    broken: str, adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, texts = capture.all_tokens, {"contrast": 40, "answers": 12}

    def read(checkpoint: Checkpoint, given: list[list[int]], layers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for number, activations in true(checkpoint, given, layers):
            yield number, activations * (np.nan if len(given) == texts[broken] else 1.0)

    monkeypatch.setattr(capture, "all_tokens", read)
    finding = found(adapted, write_latents(tmp_path / "latents"))
    assert finding.outcome == "not evaluated"
    assert "not finite" in finding.reason


def test_an_sae_that_is_named_and_not_there_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents")
    shutil.rmtree(folder / "sae")
    with pytest.raises(RealignError, match="cannot find the SAE sae: there is no such folder"):
        load(str(folder))


def test_a_copy_of_the_shipped_folder_with_an_sae_works_anywhere(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "detectors" / "mine"
    shutil.copytree(content.find("detectors", "persona_latents"), folder)
    small_sae.write(small_sae.mirror(), tmp_path / "sae")
    with (folder / "detector.yaml").open("a", encoding="utf-8") as file:
        file.write("sae: ../../sae\n")
    monkeypatch.chdir(tmp_path)
    detector = load("mine")
    assert detector.pairs == load("persona_latents").pairs  # type: ignore[attr-defined]
    assert all(path.is_file() for path in detector.files())
    path = folder / "detector.yaml"
    path.write_text(path.read_text().replace("../persona_probe/", "../persona_prob/"))
    with pytest.raises(RealignError, match="persona_prob"):
        load("mine")


def test_the_hash_names_the_sae(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents")
    before = load(str(folder)).hash
    (folder / "sae" / "more").mkdir()
    assert load(str(folder)).hash == before
    settings = json.loads((folder / "sae" / "cfg.json").read_text())
    (folder / "sae" / "cfg.json").write_text(json.dumps({**settings, "apply_b_dec_to_input": False}))
    assert load(str(folder)).hash != before


def test_a_release_is_left_to_sae_lens(adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens

    folder = write_latents(tmp_path / "latents")
    path = folder / "detector.yaml"
    path.write_text(path.read_text().replace("sae: sae\n", "sae: my-release:layer_1\n"))
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *named, **settings: small_sae.mirror())
    finding = found(adapted, folder)
    assert finding.outcome == "undecided"
    assert finding.details.sae == "my-release:layer_1"
