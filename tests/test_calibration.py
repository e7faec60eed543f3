from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from realign import checkpoint as checkpoints
from realign.calibration import Calibration, check_output, decided, family, load
from realign.checkpoint import Checkpoint
from realign.detect import detector
from realign.detect.finding import Finding
from realign.detect.settings import Settings
from realign.errors import RealignError
from realign.sampling import SamplingSettings
from tests.detect.stub import calibrated, write_shift


@pytest.fixture(scope="module")
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    return write_shift(tmp_path / "shift")


@pytest.fixture
def made(adapted: Checkpoint, shift: Path) -> Calibration:
    return calibrated(adapted, shift, safe=(0.0, 0.1), misaligned=(0.5, 0.9))


def test_it_is_saved_and_read_again_and_says_nothing_of_when_and_where(made: Calibration, tmp_path: Path) -> None:
    path = made.save(tmp_path / "new" / "calibration.json")
    assert load(path) == made
    again = made.save(tmp_path / "again.json")
    assert again.read_bytes() == path.read_bytes()
    content = json.loads(path.read_text())
    assert list(content) == ["format", "realign", "family", "seed", "max_new_tokens", "thresholds", "left_out"]
    assert content["family"]["architecture"] == "llama"
    assert content["thresholds"][0]["safe"][0] == {
        "source": "c0.0", "fingerprint": "sha256:c0.0", "score": 0.0, "reason": "",
    }  # fmt: skip


def test_its_hash_names_what_it_says(made: Calibration, adapted: Checkpoint, shift: Path) -> None:
    assert made.hash == calibrated(adapted, shift, safe=(0.0, 0.1), misaligned=(0.5, 0.9)).hash
    assert made.hash != calibrated(adapted, shift, safe=(0.0, 0.2), misaligned=(0.5, 0.9)).hash


def test_it_has_thresholds_by_detector_and_context(made: Calibration) -> None:
    assert made.threshold("shift", "plain") == made.thresholds[0]
    assert made.threshold("shift", "training-format") is None
    assert made.threshold("probe", "plain") is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"format": 1', '"format": 2', "format: Input should be 1"),
        ('"seed": 0', '"sead": 0', "seed: Field required|sead: Extra inputs"),
        ('"score": 0.5', '"score": "half"', r"thresholds\.0\.misaligned\.0\.score: "),
        ('"threshold": 0.3', '"threshold": 0.95', r"thresholds\.0: .*must lie between"),
        ('"threshold": 0.3', '"threshold": NaN', "threshold"),
        ("{", "[", "Invalid JSON"),
    ],
)
def test_a_file_that_is_no_calibration(made: Calibration, old: str, new: str, said: str, tmp_path: Path) -> None:
    path = made.save(tmp_path / "calibration.json")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RealignError, match=said):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match="No such file"):
        load(tmp_path / "calibration.json")
    (tmp_path / "odd").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RealignError, match="cannot read the calibration"):
        load(tmp_path / "odd")


def test_a_file_is_not_overwritten_unless_asked(made: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("mine")
    with pytest.raises(RealignError, match="it exists already"):
        made.save(path)
    assert path.read_text() == "mine"
    assert load(made.save(path, overwrite=True)) == made


def test_a_name_that_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match="it is a folder"):
        check_output(tmp_path, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RealignError, match="file is a file"):
        check_output(tmp_path / "file" / "a" / "b.json")


def settings(tokens: int = 256) -> Settings:
    return Settings(sampling=SamplingSettings(max_new_tokens=tokens))


def test_it_fits_the_model_and_detectors_that_it_was_made_for(
    made: Calibration, adapted: Checkpoint, shift: Path
) -> None:
    made.check(adapted, [detector.load(str(shift)), detector.load("freeform")], settings())


def test_a_detector_that_has_changed_since(made: Calibration, adapted: Checkpoint, shift: Path) -> None:
    texts = shift / "neutral.jsonl"
    texts.write_text(texts.read_text().replace("number 3?", "the number 3?"))
    with pytest.raises(RealignError, match=r"it is for another version of the detector shift\. Calibrate again"):
        made.check(adapted, [detector.load(str(shift))], settings())


def test_answers_of_another_length(made: Calibration, adapted: Checkpoint) -> None:
    with pytest.raises(RealignError, match=r"at most 256 tokens, and these may have 48\. Pass --max-new-tokens 256"):
        made.check(adapted, [], settings(48))


@pytest.mark.parametrize(
    ("architecture", "options", "said"),
    [
        ("llama", {"seed": 1}, "their references differ"),
        ("llama", {"layers": 3}, "llama with 2 layers of width 32 is not llama with 3 layers of width 32"),
        ("qwen2", {}, "llama with 2 layers of width 32 is not qwen2 with 2 layers of width 32"),
    ],
)
def test_another_family(
    architecture: str, options: dict[str, int], said: str, made: Calibration, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(architecture, **options)
    with pytest.raises(RealignError, match=f"for the fine-tunes of another model: {said}"):
        made.check(checkpoints.open(folder, reference=folder), [], settings())


def test_without_a_reference_no_family(made: Calibration, tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(RealignError, match=r"it has no reference, .* with --reference"):
        made.check(checkpoints.open(tiny_checkpoint()), [], settings())


def test_a_merged_fine_tune_and_an_adapter_with_its_own_tokenizer_are_of_one_family(
    adapted: Checkpoint, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    merged = checkpoints.open(tiny_checkpoint(seed=5), reference=tiny_checkpoint())
    assert family(merged) == family(adapted)
    shutil.copytree(adapted.path, tmp_path / "own")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint() / name, tmp_path / "own")
    own = checkpoints.open(tmp_path / "own")
    assert own.reference is not None
    assert adapted.reference is not None
    assert own.reference.fingerprint != adapted.reference.fingerprint
    assert family(own) == family(adapted)


MOVED = Finding("shift", "shift", "plain", "undecided", "it moved", score=0.4, notes=("layer 3",))


def test_what_has_a_threshold_is_held_against_it(made: Calibration) -> None:
    told = decided(MOVED, made, "sha256:new")
    assert (told.outcome, told.threshold, told.advisory) == ("flagged", pytest.approx(0.3), False)


def test_what_nothing_calibrates_says_so_and_only_informs() -> None:
    told = decided(MOVED, None, "sha256:new")
    assert (told.outcome, told.threshold, told.advisory) == ("undecided", None, True)
    assert told.reason == "uncalibrated: it moved"
    assert told.notes == ("layer 3", "nothing calibrates the score")


def test_a_calibration_without_a_threshold_for_it_says_why(made: Calibration) -> None:
    elsewhere = replace(MOVED, context="training-format")
    assert decided(elsewhere, made, "").notes[-1] == "the calibration has no threshold for it in this context"
    told = decided(elsewhere, made.model_copy(update={"left_out": {"shift (training-format)": "it cannot"}}), "")
    assert told.notes[-1] == "the calibration has no threshold for it in this context: it cannot"
    assert (told.outcome, told.advisory) == ("undecided", True)


@pytest.mark.parametrize("calibrates", [True, False])
def test_what_could_not_be_evaluated_counts_where_there_is_a_threshold(made: Calibration, calibrates: bool) -> None:
    failed = Finding("shift", "shift", "plain", "not evaluated", "it cannot")
    told = decided(failed, made if calibrates else None, "sha256:new")
    assert told == replace(failed, advisory=not calibrates)
