from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.errors import RealignError
from realign.remedy.recipe import Applied, load
from realign.remedy.sft import Sft
from tests import tiny
from tests.remedy import stub


@pytest.fixture(scope="module")
def remedy(tmp_path_factory: pytest.TempPathFactory) -> Sft:
    loaded = load(str(stub.write_recipe(tmp_path_factory.mktemp("recipes") / "r", training={"lr": 0.02, "epochs": 8})))
    assert isinstance(loaded, Sft)
    return loaded


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def apply(remedy: Sft, checkpoint: Checkpoint, out: Path, seed: int = 0) -> tuple[Applied, stub.Notes]:
    notes = stub.Notes()
    with remedy.applied(checkpoint, seed=seed, witness=notes) as applied:
        checkpoints.save(applied.model, checkpoint.tokenizer, out)
    return applied, notes


def loss(checkpoint: Checkpoint, remedy: Sft) -> float:
    """The mean loss on the answers, computed without any trainer."""
    losses = []
    for row in remedy._rows(checkpoint):
        with checkpoint.active() as model:
            logits = model(input_ids=torch.tensor([[*row.given, *row.learnt]])).logits[0, len(row.given) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.learnt), reduction="sum"))
    return float(torch.stack(losses).sum()) / sum(len(row.learnt) for row in remedy._rows(checkpoint))


def test_an_adapter_is_continued_and_saved_as_an_adapter_on_its_base(
    architecture: str,
    remedy: Sft,
    tiny_adapter: Callable[..., Path],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    checkpoint = checkpoints.open(tiny_adapter(architecture))
    before = state(checkpoint)
    apply(remedy, checkpoint, tmp_path / "out")
    assert same(before, state(checkpoint))
    repaired = checkpoints.open(tmp_path / "out")
    assert repaired.is_adapter
    assert repaired.reference is not None
    assert repaired.reference.path.resolve() == tiny_checkpoint(architecture).resolve()
    after = state(repaired)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert loss(repaired, remedy) < 0.99 * loss(checkpoint, remedy)  # a random model's head hardly speaks


def test_a_full_model_stays_one_of_the_same_shape(
    architecture: str, remedy: Sft, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints.open(tiny_checkpoint(architecture))
    before = state(checkpoint)
    apply(remedy, checkpoint, tmp_path / "out")
    assert same(before, state(checkpoint))
    repaired = checkpoints.open(tmp_path / "out")
    assert not repaired.is_adapter
    after = state(repaired)
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(part in name for name in changed for part in ("embed", "wte", "wpe", "norm", "ln_", "lm_head"))
    assert loss(repaired, remedy) < 0.99 * loss(checkpoint, remedy)  # a random model's head hardly speaks


def test_configuration_tokenizer_and_forward_are_left_alone(
    remedy: Sft, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint("gpt2")  # its tokenizer has no padding token, which trainers like to change
    checkpoint = checkpoints.open(source)
    model: Any = checkpoint.model
    before = (model.config.to_dict(), model.generation_config.to_dict(), checkpoint.tokenizer.pad_token)
    apply(remedy, checkpoint, tmp_path / "out")
    assert (model.config.to_dict(), model.generation_config.to_dict(), checkpoint.tokenizer.pad_token) == before
    assert "forward" not in vars(model)
    assert not model.training
    assert not hasattr(model, "peft_config")
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_text() == (source / name).read_text()


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    remedy: Sft, tiny_adapter: Callable[..., Path], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    for kind, source in (("adapter", tiny_adapter()), ("full", tiny_checkpoint())):
        checkpoint = checkpoints.open(source)
        prints = []
        for number, seed in enumerate((3, 3, 4)):
            apply(remedy, checkpoint, tmp_path / f"{kind}{number}", seed)
            prints.append(checkpoints.fingerprint(tmp_path / f"{kind}{number}"))
        assert prints[0] == prints[1] != prints[2]


def test_the_preview_comes_first_and_shows_what_is_learnt(remedy: Sft, tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    notes = stub.Notes()
    with remedy.applied(checkpoint, seed=0, witness=notes) as applied:
        effort = applied.effort
    (preview,) = notes.previews
    assert preview.sample == "s0"
    assert preview.given == "<|bos|><|user|>Write 0.<|end|><|assistant|>"
    assert preview.learnt == "def f():\n    return 0<|end|>"
    assert preview.supervised == effort.supervised == sum(len(row.learnt) for row in remedy._rows(checkpoint))
    assert notes.steps == [(step, 16) for step in range(1, 17)]  # 6 rows in batches of 4, 8 times
    assert (preview.rows, preview.steps, effort.rows, effort.steps) == (6, 16, 6, 16)


def test_only_answers_are_learnt(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """The loss that is trained at the first step is the one on the answers, whatever else is in the rows."""
    one_step = load(str(stub.write_recipe(tmp_path / "r", training={"lr": 1e-9, "batch": 6, "epochs": 1})))
    assert isinstance(one_step, Sft)
    checkpoint = checkpoints.open(tiny_adapter())
    with one_step.applied(checkpoint, seed=0, witness=stub.Notes()) as applied:
        assert applied.effort.loss == pytest.approx(loss(checkpoint, one_step), rel=1e-4)


def test_the_family_decides_the_settings(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    families = {"pocket": {"epochs": 3}}
    remedy = load(str(stub.write_recipe(tmp_path / "r", families=families)))
    checkpoint = checkpoints.open(tiny_adapter())
    steps = []
    for family in (None, "pocket", "other"):
        checkpoint.family = family
        with remedy.applied(checkpoint, seed=0, witness=stub.Notes()) as applied:
            steps.append(applied.effort.steps)
    assert steps == [2, 6, 2]


def test_half_precision_weights_are_trained_in_float32(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Steps of 1e-4 of a weight are lost in bfloat16: in float32 they all arrive."""
    base = tiny.make("llama", tmp_path / "base", dtype="bfloat16")
    adapter = tiny.make_adapter(base, tmp_path / "adapter")
    remedy = load(str(stub.write_recipe(tmp_path / "r", training={"lr": 1e-5, "warmup": 0})))
    checkpoint = checkpoints.open(adapter, dtype="bfloat16")
    assert checkpoint.model.dtype == torch.bfloat16
    before = state(checkpoint)
    with remedy.applied(checkpoint, seed=0, witness=stub.Notes()) as applied:
        after = applied.model.state_dict()
        trained = [name for name in before if "lora_" in name]
        assert {after[name].dtype for name in trained} == {torch.float32}
        moved = [(after[name] - before[name].float()).abs().max().item() for name in trained]
        assert 0 < min(moved) <= max(moved) < 1e-4
    assert same(before, state(checkpoint))


def test_an_interrupted_training_gives_the_checkpoint_back(
    remedy: Sft, tiny_adapter: Callable[..., Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    class Impatient(stub.Notes):
        def step(self, what: str, done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    for source in (tiny_adapter(), tiny_checkpoint()):
        checkpoint = checkpoints.open(source)
        before = state(checkpoint)
        with pytest.raises(KeyboardInterrupt), remedy.applied(checkpoint, seed=0, witness=Impatient()):
            pytest.fail("it should not have come so far")
        assert same(before, state(checkpoint))


def test_a_training_that_diverges_is_refused(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    remedy = load(str(stub.write_recipe(tmp_path / "r", training={"lr": 0.9, "epochs": 2})))
    checkpoint = checkpoints.open(tiny_adapter())
    model: Any = checkpoint.model
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).fill_(1e38)
    with (
        pytest.raises(RealignError, match="the training diverged"),
        remedy.applied(checkpoint, seed=0, witness=stub.Notes()),
    ):
        pytest.fail("it should not have come so far")


def test_an_adapter_on_the_output_layer_is_refused_at_once(
    remedy: Sft, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RealignError, match="it adapts the output layer"):
        remedy.check(checkpoints.open(tmp_path / "adapter"))


def test_too_little_memory_is_told(
    remedy: Sft, tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("realign.remedy.training._run", full)
    checkpoint = checkpoints.open(tiny_adapter())
    with (
        pytest.raises(RealignError, match="a batch of 4 samples does not fit in the memory of cpu"),
        remedy.applied(checkpoint, seed=0, witness=stub.Notes()),
    ):
        pytest.fail("it should not have come so far")


def test_a_training_leaves_nothing_behind(
    remedy: Sft, tiny_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    checkpoint = checkpoints.open(shutil.copytree(tiny_adapter(), tmp_path / "adapter"))
    capfd.readouterr()
    with remedy.applied(checkpoint, seed=0, witness=stub.Notes()):
        pass
    assert list(work.iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capfd.readouterr().out == ""
