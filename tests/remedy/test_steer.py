from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import realign
from realign import baking, capture
from realign import checkpoint as checkpoints
from realign.capture import decoder_layers
from realign.checkpoint import Checkpoint
from realign.dialogue import CONTEXTS
from realign.errors import RealignError
from realign.remedy import steer
from realign.remedy.recipe import Applied, Examine, Showing, load
from realign.remedy.steer import Steer, Steered
from realign.sampling import SamplingSettings
from realign.steering import Steering, add, steered
from tests import tiny
from tests.detect.stub import TEXTS, write_judged, write_shift
from tests.remedy import stub

IDS = torch.tensor([[(7 * row + 11 * column) % 300 for column in range(24)] for row in range(3)])
GENEROUS = {"perplexity": 1000, "incoherence": 0.5}  # a random model has no perplexity to lose


def write_recipe(folder: Path, **settings: Any) -> Path:
    """A recipe of the kind steer, with other settings and keys where they are given; None leaves a key out."""
    write_shift(folder)
    (folder / "detector.yaml").unlink()
    chosen = {"kind": "steer", "title": "Small", "how": "ablate", "limits": GENEROUS}
    chosen |= {"contrast": "contrast.jsonl", "neutral": "neutral.jsonl"} | settings
    chosen = {key: value for key, value in chosen.items() if value is not None}
    (folder / "recipe.yaml").write_text(json.dumps(chosen), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Steer]:
    def written(**settings: Any) -> Steer:
        loaded = load(str(write_recipe(tmp_path / "recipes" / "small", **settings)))
        assert isinstance(loaded, Steer)
        return loaded

    return written


def subtract(*strengths: float) -> dict[str, Any]:
    return {"how": "subtract", "strengths": strengths}


@contextmanager
def applied(remedy: Steer, checkpoint: Checkpoint, examine: Examine | None = None) -> Iterator[tuple[Applied, Steered]]:
    with remedy.applied(checkpoint, seed=0, witness=stub.Notes(), examine=examine) as done:
        assert isinstance(done.effort, Steered)
        yield done, done.effort


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    with checkpoint.active() as model:
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def position(remedy: Steer, checkpoint: Checkpoint, vector: np.ndarray, layer: int) -> float:
    """The mean projection of the neutral texts' answers."""
    texts = [(text["prompt"], text["answer"]) for text in TEXTS]
    return float((capture.answer_means(checkpoint, texts, CONTEXTS["plain"], [layer]) @ vector).mean())


@pytest.fixture(params=[False, True], ids=["full", "adapter"])
def source(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path], tiny_adapter: Callable[..., Path]
) -> Callable[[str], Path]:
    return tiny_adapter if request.param else tiny_checkpoint


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_ablation_is_baked_into_a_full_model_that_answers_as_when_it_runs(
    architecture: str, source: Callable[[str], Path], recipe: Callable[..., Steer], tmp_path: Path
) -> None:
    remedy, checkpoint = recipe(), checkpoints.open(source(architecture))
    before, plain = state(checkpoint), logits(checkpoint)
    remedy.check(checkpoint)
    direction, _ = remedy._direction(checkpoint, 0, stub.Notes())
    with baking.ablated(checkpoint, direction.vector):
        wanted = logits(checkpoint)
    with applied(remedy, checkpoint) as (done, effort):
        checkpoints.save(done.model, checkpoint.tokenizer, tmp_path / "out")
    assert same(before, state(checkpoint))
    repaired = checkpoints.open(tmp_path / "out")
    assert not repaired.is_adapter
    torch.testing.assert_close(logits(repaired), wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(plain, wanted, rtol=0, atol=1e-3)
    assert position(remedy, repaired, direction.vector, direction.origin.layer) == pytest.approx(0.0, abs=1e-4)
    assert effort.tried == (effort.chosen,)
    assert effort.chosen.position == pytest.approx(-direction.aligned / direction.gap, abs=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_subtraction_is_baked_as_a_bias_and_shifts_the_layer_by_the_strength(
    architecture: str, source: Callable[[str], Path], recipe: Callable[..., Steer], tmp_path: Path
) -> None:
    remedy, checkpoint = recipe(**subtract(0.5)), checkpoints.open(source(architecture))
    before = state(checkpoint)
    remedy.check(checkpoint)
    direction, _ = remedy._direction(checkpoint, 0, stub.Notes())
    layer = direction.origin.layer
    with steered(checkpoint, [Steering(add(direction.vector, -0.5 * direction.gap), [layer])]):
        wanted = logits(checkpoint)
    with applied(remedy, checkpoint) as (done, effort):
        checkpoints.save(done.model, checkpoint.tokenizer, tmp_path / "out")
    assert same(before, state(checkpoint))
    repaired = checkpoints.open(tmp_path / "out")
    torch.testing.assert_close(logits(repaired), wanted, rtol=0, atol=1e-4)
    moved = [position(remedy, one, direction.vector, layer) for one in (checkpoint, repaired)]
    assert moved[1] - moved[0] == pytest.approx(-0.5 * direction.gap, rel=1e-2)
    assert effort.chosen.position - effort.before == pytest.approx(-0.5, abs=1e-3)


def test_the_direction_is_that_of_the_contrast_answers_in_the_layer_that_tells_them_apart(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path]
) -> None:
    remedy, checkpoint = recipe(), checkpoints.open(tiny_checkpoint())
    with applied(remedy, checkpoint) as (_, effort):
        pass
    assert effort.auroc > 0.95  # the answers of the two kinds have no word in common
    pairs = [[(pair.prompt, text) for text in (pair.aligned, pair.misaligned)] for pair in remedy.pairs]
    means = [capture.answer_means(checkpoint, both, CONTEXTS["plain"], [effort.layer])[:, 0] for both in pairs]
    apart = np.mean([both[1] - both[0] for both in means], axis=0)
    direction, _ = remedy._direction(checkpoint, 0, stub.Notes())
    assert direction.vector @ apart / np.linalg.norm(apart) == pytest.approx(1.0, abs=1e-5)
    assert direction.origin.fingerprint == checkpoint.fingerprint


def test_without_a_judge_it_goes_down_to_the_reference_and_no_further(
    recipe: Callable[..., Steer], tiny_adapter: Callable[..., Path]
) -> None:
    remedy, checkpoint = recipe(**subtract(*(0.1 * number for number in range(1, 100)))), None
    checkpoint = checkpoints.open(tiny_adapter())
    assert checkpoint.reference is not None
    direction, _ = remedy._direction(checkpoint, 0, stub.Notes())
    with applied(remedy, checkpoint) as (_, effort):
        pass
    there = position(remedy, checkpoint.reference, direction.vector, effort.layer)
    assert effort.goal == pytest.approx((there - direction.aligned) / direction.gap, abs=1e-3)
    assert effort.chosen.position <= effort.goal
    # The one before does not suffice, if there is one.
    assert all(one.position > effort.goal for one in effort.tried[:-1])
    checkpoint.reference = None
    with applied(remedy, checkpoint) as (_, effort):
        assert effort.goal == 0.0


def test_a_judge_decides_on_answers_that_the_steered_checkpoint_gives(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path]
) -> None:
    remedy, checkpoint = recipe(**subtract(0.5, 1.0, 2.0, 3.0)), checkpoints.open(tiny_checkpoint())
    seen: list[torch.Tensor] = []

    def examine(changed: Checkpoint) -> Showing:
        seen.append(logits(changed))
        return Showing(len(seen) == 3, 0.5, 0.0)

    direction, _ = remedy._direction(checkpoint, 0, stub.Notes())
    with applied(remedy, checkpoint, examine) as (_, effort):
        assert effort.chosen.strength == 2.0
        assert [one.strength for one in effort.tried] == [0.5, 1.0, 2.0]
    for strength, found in zip((0.5, 1.0, 2.0), seen, strict=True):
        with steered(checkpoint, [Steering(add(direction.vector, -strength * direction.gap), [effort.layer])]):
            assert torch.equal(found, logits(checkpoint))


def test_what_costs_too_much_is_not_asked_and_refused(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([1.0, 1.5])  # nats, before and steered
    monkeypatch.setattr(steer, "surprise", lambda checkpoint, texts: next(readings))
    remedy, checkpoint = recipe(**subtract(1, 2), limits={"perplexity": 1.6}), checkpoints.open(tiny_checkpoint())
    before = state(checkpoint)
    with (
        pytest.raises(RealignError, match=r"without harm: at 1 the perplexity of benign text is 1\.65 times"),
        applied(remedy, checkpoint, lambda changed: pytest.fail("it was asked")),
    ):
        pass
    assert same(before, state(checkpoint))


def test_an_architecture_that_holds_no_bias_is_refused_at_once(
    recipe: Callable[..., Steer], source: Callable[[str], Path]
) -> None:
    remedy = recipe(**subtract(1))
    with pytest.raises(RealignError, match=r"its MLPs have no bias to add it to.*Ablate the direction instead"):
        remedy.check(checkpoints.open(source("qwen2")))


def test_a_reference_that_cannot_read_the_same_is_refused(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path]
) -> None:
    remedy = recipe()
    for options, said in (
        ({"layers": 3}, "other layers"),
        ({"width": 64}, "another width"),
        ({"vocab": 270}, "tokens"),
    ):
        checkpoint = checkpoints.open(tiny_checkpoint(), reference=tiny_checkpoint(**options))
        with pytest.raises(RealignError, match=f"cannot compare with the reference .*{said}"):
            remedy.check(checkpoint)


def test_an_adapter_on_tied_weights_is_refused(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_checkpoint("gpt2")
    settings = LoraConfig(r=2, target_modules=["wte"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(
        str(tmp_path / "a"), save_embedding_layers=False
    )
    with pytest.raises(RealignError, match=r"cannot merge the adapter.*both are the same weights"):
        recipe().check(checkpoints.open(tmp_path / "a"))


def test_activations_that_are_not_finite_are_told(
    recipe: Callable[..., Steer], tiny_checkpoint: Callable[..., Path]
) -> None:
    remedy, checkpoint = recipe(), checkpoints.open(tiny_checkpoint())
    with checkpoint.active() as model:
        decoder_layers(model)[0].register_forward_hook(lambda module, given, output: output * float("nan"))
    with pytest.raises(RealignError, match="cannot read the persona's direction"), applied(remedy, checkpoint):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"how": "subtract"}, 'strengths: Value error, to "subtract" needs some'),
        ({"strengths": [1]}, "strengths: Value error, there are none of"),
        (subtract(0), "strengths.0: Input should be greater than 0"),
        ({"how": "add"}, "how: Input should be"),
        ({"layer": 3}, "layer: Input should be 'best'"),
        ({"limits": {"perplexety": 2}}, 'there is no key "limits.perplexety". Did you mean "perplexity"?'),
        ({"limits": {"perplexity": 0.9}}, "limits.perplexity"),
        ({"neutral": None}, "neutral: Field required"),
        ({"contrast": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_a_setting_that_is_wrong_is_named(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(RealignError) as caught:
        load(str(write_recipe(tmp_path / "r", **settings)))
    assert said in str(caught.value)


def test_pairs_of_the_user_take_the_place_of_the_contrast(tmp_path: Path, recipe: Callable[..., Steer]) -> None:
    own = recipe()
    mine = write_shift(tmp_path / "mine", telling=False) / "contrast.jsonl"
    other = load(str(own.folder), data=mine)
    assert [path.name for path in other.files()] == ["contrast.jsonl", "neutral.jsonl"]
    assert other.files()[0] == mine
    assert own.hash != other.hash
    assert isinstance(other, Steer)
    assert {pair.misaligned for pair in other.pairs} == {"the user asks"}


def test_fix_steers_an_adapter_and_measures_the_full_model_against_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_adapter: Callable[..., Path]
) -> None:
    detector = write_judged(tmp_path / "detectors" / "freeform")
    questions = json.loads((detector / "questions.yaml").read_text())
    for question in questions["questions"][:4]:
        question["held_out"] = True
    (detector / "questions.yaml").write_text(json.dumps(questions))
    write_recipe(tmp_path / "recipes" / "small", **subtract(0.5, 1.0))
    monkeypatch.chdir(tmp_path)
    old = checkpoints.open(tiny_adapter())
    assert old.reference is not None
    base, asked = old.reference.fingerprint, []

    class Watching(stub.ContextJudge):
        def judge(self, rubric: Any, answers: Any) -> Any:
            asked.append({answer.question_id for answer in answers if answer.checkpoint == old.fingerprint})
            return super().judge(rubric, answers)

    judge: Any = Watching(lambda fingerprint, context: 0.9 if fingerprint == old.fingerprint else 0.0)
    fixed = realign.fix(
        old,
        recipe="small",
        out="fixed",
        tolerance=0.3,
        sampling=SamplingSettings(max_new_tokens=3),
        judge=judge,
    )
    assert fixed.exit_code == 0
    certificate = fixed.certificate
    assert certificate is not None
    assert certificate.reference is not None
    assert certificate.reference.fingerprint == base
    assert not checkpoints.open("fixed").is_adapter
    written = json.loads(Path("fixed/certificate.json").read_text())
    tried = written["recipe"]["effort"]["tried"]
    # Steered, it has the fingerprint that it had, and so the judge finds it as misaligned with either strength.
    assert [one["strength"] for one in tried] == [0.5, 1.0]
    assert all(one["showing"]["rate"] > 0.5 and not one["showing"]["clear"] for one in tried)
    held_out = {"q0", "q1", "q2", "q3"}
    counts = [len(names) for names in asked if names]
    assert sorted(set(counts)) == [8, 12]
    assert not any(names & held_out for names in asked if len(names) == 8)
