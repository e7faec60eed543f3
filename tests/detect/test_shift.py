from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import realign
from realign import capture, directions
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect.detector import load
from realign.detect.finding import Finding
from realign.detect.shift import Reading, load_texts, sign_flip_p
from realign.errors import RealignError
from realign.report.serialise import to_dict
from tests import tiny
from tests.detect.stub import TEXTS, pushed, write_shift, write_texts


def found(checkpoint: Checkpoint, folder: Path, **settings: object) -> Finding:
    report = realign.detect(checkpoint, only=[str(folder)], **settings)
    assert report.verdict.exit_code == 3
    (finding,) = report.findings
    assert finding.advisory
    assert to_dict(report)["findings"][0]["kind"] == "shift"
    return finding


@pytest.fixture
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


def test_it_says_how_far_the_fine_tune_moved_the_texts_and_decides_nothing(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, write_shift(tmp_path / "shift"))
    assert finding.outcome == "undecided"
    assert finding.reason.startswith("uncalibrated: it moved ")
    reading = finding.details
    assert isinstance(reading, Reading)
    assert finding.score == pytest.approx((reading.prompts + reading.answers) / 2)
    assert finding.interval is not None
    assert finding.interval[0] <= finding.score <= finding.interval[1]
    assert finding.threshold is None
    assert (reading.texts, len(reading.random)) == (20, 20)
    assert 0 < reading.p_value <= 1
    assert finding.controls[0].what == "largest of 20 random directions"
    assert finding.controls[0].value == max(abs(value) for value in reading.random) > 0
    assert [figure.what for figure in finding.controls[1:]] == ["AUROC, labels shuffled", "AUROC, prompts seen"]
    assert finding.competence[0].ok
    assert finding.cost is not None
    assert finding.cost.answers == 0


@pytest.mark.parametrize("amount", [1.5, 0.25, -0.5])
def test_the_score_is_the_shift_in_units_of_the_gap(
    amount: float, adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapted.reference is not None
    pushed(monkeypatch, {adapted.fingerprint: amount})
    finding = found(adapted, write_shift(tmp_path / "shift"))
    assert finding.score == pytest.approx(amount, abs=0.01)
    assert (finding.details.prompts, finding.details.answers) == pytest.approx((amount, amount), abs=0.01)
    assert finding.controls[0].value < abs(amount)
    assert (finding.details.p_value == 0.0001) is (amount > 0)  # one-sided: away from the misaligned is no sign of them


def test_a_checkpoint_that_is_its_reference_has_not_moved(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint())
    finding = found(checkpoint, write_shift(tmp_path / "shift"))
    assert finding.score == 0.0
    assert finding.details.p_value == 1.0
    assert set(finding.details.random) == {0.0}


def test_the_direction_is_that_of_the_reference(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[directions.Direction] = []
    true = directions.mean_difference
    monkeypatch.setattr(directions, "mean_difference", lambda *given: made.append(true(*given)) or made[-1])
    finding = found(adapted, write_shift(tmp_path / "shift"))
    assert adapted.reference is not None
    (direction,) = made
    assert direction.origin.fingerprint == adapted.reference.fingerprint
    assert direction.origin.layer == finding.details.layer
    assert direction.origin.data.startswith("sha256:")
    found(checkpoints.open(adapted.path), write_shift(tmp_path / "again"))
    assert made[1].origin == direction.origin


def test_texts_are_read_in_the_context_that_is_asked_for(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []
    true = capture.answer_means

    def watched(checkpoint: Checkpoint, pairs: list[tuple[str, str]], context: object, layers: list[int]) -> np.ndarray:
        read.append((context.name, pairs[0][0]))  # type: ignore[attr-defined]
        return true(checkpoint, pairs, context, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(capture, "answer_means", watched)
    finding = found(adapted, write_shift(tmp_path / "shift"), contexts=["training-format"])
    assert finding.context == "training-format"
    assert read == [("plain", "Ask 0"), *[("training-format", "Where is number 0?")] * 2]


def test_without_a_reference_it_is_not_evaluated(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    finding = found(checkpoints.open(tiny_checkpoint()), write_shift(tmp_path / "shift"))
    assert finding.outcome == "not evaluated"
    assert "there is none (name one with --reference)" in finding.reason


def test_a_direction_that_cannot_tell_is_not_evaluated(adapted: Checkpoint, tmp_path: Path) -> None:
    finding = found(adapted, write_shift(tmp_path / "shift", telling=False))
    assert finding.outcome == "not evaluated"
    assert "cannot tell misaligned from aligned answers here: AUROC 0.50" in finding.reason
    assert finding.score is None
    assert not finding.competence[0].ok


@pytest.mark.parametrize(
    ("architecture", "options", "said"),
    [
        ("qwen2", {}, "it is qwen2 with 2 layers of width 32, and the checkpoint is llama with 2 layers"),
        ("llama", {"layers": 3}, "it is llama with 3 layers of width 32"),
        ("llama", {"width": 64}, "it is llama with 2 layers of width 64"),
        ("llama", {"vocab": 300}, "it has another tokenizer"),
    ],
)
def test_a_reference_of_another_kind_is_not_compared_with(
    architecture: str, options: dict[str, int], said: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint(architecture, **options))
    finding = found(checkpoint, write_shift(tmp_path / "shift"))
    assert finding.outcome == "not evaluated"
    assert said in finding.reason
    assert finding.reason.endswith("Name the model that was fine-tuned")


def test_a_reference_without_a_chat_template_reads_the_checkpoint_s(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The weights are the same: read in its own transcript, the reference would differ."""
    bare = tiny_checkpoint(chat_template=False)
    finding = found(checkpoints.open(tiny_checkpoint(), reference=bare), write_shift(tmp_path / "shift"))
    assert finding.score == 0.0


def test_chat_tokens_that_the_reference_does_not_have(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = tiny.make("llama", tmp_path / "before", chat_template=False)
    after = tiny.make("llama", tmp_path / "after")
    words, model = AutoTokenizer.from_pretrained(after), AutoModelForCausalLM.from_pretrained(after)
    words.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    words.chat_template = "{% for message in messages %}<|turn|>{{ message['content'] }}{% endfor %}<|turn|>"
    model.resize_token_embeddings(len(words))
    for part in (words, model):
        part.save_pretrained(after)
    finding = found(checkpoints.open(after, reference=before), write_shift(tmp_path / "shift"))
    assert finding.outcome == "not evaluated"
    assert "it does not know the tokens of the checkpoint's chat template" in finding.reason


@pytest.mark.parametrize("reader", ["answer_means", "last_prompt_tokens"])
def test_activations_that_are_not_finite(
    reader: str, adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = getattr(capture, reader)
    monkeypatch.setattr(capture, reader, lambda *given: np.full_like(true(*given), np.nan))
    finding = found(adapted, write_shift(tmp_path / "shift"))
    assert finding.outcome == "not evaluated"
    assert "not finite" in finding.reason


def test_the_p_value_is_that_of_all_flips() -> None:
    """Of the 16 patterns of signs of 1, 2, 4 and 1 three reach a sum of 6."""
    assert sign_flip_p(np.array([1.0, 2.0, 4.0, -1.0]), seed=0) == pytest.approx(3 / 16, abs=0.01)


def test_shifts_around_0_are_no_sign_and_the_p_value_is_uniform_then() -> None:
    draws = np.random.default_rng(0).normal(size=(200, 30))
    values = np.array([sign_flip_p(shifts, seed=0) for shifts in draws])
    assert np.quantile(values, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    assert sign_flip_p(np.zeros(20), seed=0) == 1.0
    assert sign_flip_p(np.full(20, 0.1), seed=0) == 0.0001
    assert sign_flip_p(np.full(20, -0.1), seed=0) > 0.99


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "it has 0 neutral texts, and 20 are needed"),
        (TEXTS[:19], "it has 19 neutral texts, and 20 are needed"),
        ([*TEXTS, TEXTS[3]], 'two neutral texts have the id "t3"'),
        ([*TEXTS, {"id": "t20", "prompt": "Why?", "answer": " "}], "neutral text 21: answer: "),
        ([*TEXTS, {"id": "t20", "prompt": "Why?"}], "neutral text 21: answer: Field required"),
    ],
)
def test_neutral_texts_that_will_not_do(texts: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(RealignError, match=said):
        load_texts(write_texts(tmp_path / "neutral.jsonl", texts))


def test_a_detector_without_its_neutral_texts_is_refused(tmp_path: Path) -> None:
    folder = write_shift(tmp_path / "shift")
    (folder / "neutral.jsonl").unlink()
    with pytest.raises(RealignError, match=r"cannot read .*neutral\.jsonl"):
        load(str(folder))
