from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import realign
from realign import checkpoint
from realign.errors import RealignError
from tests import tiny

Maker = Callable[..., Path]
IDS = torch.tensor([[1, 9, 30, 80, 12]])


def logits(opened: checkpoint.Checkpoint) -> torch.Tensor:
    with opened.active() as model:
        return model(IDS).logits


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_adapter_and_its_reference_are_one_model(
    architecture: str, tiny_checkpoint: Maker, tiny_adapter: Maker
) -> None:
    base = checkpoint.open(tiny_checkpoint(architecture))
    adapter = checkpoint.open(tiny_adapter(architecture))
    assert adapter.is_adapter
    assert adapter.reference is not None
    assert not adapter.reference.is_adapter
    assert adapter.reference.model is adapter.model
    assert adapter.reference.fingerprint == base.fingerprint != adapter.fingerprint
    on, off, again = logits(adapter), logits(adapter.reference), logits(adapter)
    assert torch.equal(off, logits(base))
    assert torch.equal(on, again)
    assert (on - off).abs().max() > 0.01


def test_an_adapter_answers_as_peft_says(tiny_checkpoint: Maker, tiny_adapter: Maker) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint())
    peer = PeftModel.from_pretrained(base, tiny_adapter())
    with torch.inference_mode():
        assert torch.equal(logits(checkpoint.open(tiny_adapter())), peer(IDS).logits)


def test_a_full_model_has_no_reference_unless_named(tiny_checkpoint: Maker) -> None:
    alone = checkpoint.open(tiny_checkpoint())
    assert alone.reference is None
    assert not alone.is_adapter
    assert alone.family is None
    assert alone.tokenizer.chat_template
    paired = checkpoint.open(tiny_checkpoint(seed=1), reference=tiny_checkpoint())
    assert paired.reference is not None
    assert paired.reference.fingerprint == alone.fingerprint
    assert torch.equal(logits(paired.reference), logits(alone))


def test_an_adapters_base_named_as_reference_is_not_loaded_again(tiny_checkpoint: Maker, tiny_adapter: Maker) -> None:
    opened = checkpoint.open(tiny_adapter(), reference=tiny_checkpoint())
    assert opened.reference is not None
    assert opened.reference.model is opened.model


def test_an_adapter_may_have_another_reference(tiny_checkpoint: Maker, tiny_adapter: Maker) -> None:
    other = tiny_checkpoint(seed=1)
    opened = checkpoint.open(tiny_adapter(), reference=other)
    assert opened.reference is not None
    assert opened.reference.path == other
    assert torch.equal(logits(opened.reference), logits(checkpoint.open(other)))


def test_the_base_is_found_where_the_config_says_or_given_or_inside(
    tiny_checkpoint: Maker, tiny_adapter: Maker, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter(), folder)
    expected = logits(checkpoint.open(folder))
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path="/nowhere/at/all")
    assert torch.equal(logits(checkpoint.open(folder, base=tiny_checkpoint())), expected)
    shutil.copytree(tiny_checkpoint(), folder / "base")
    assert torch.equal(logits(checkpoint.open(folder)), expected)
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path=None)
    assert torch.equal(logits(checkpoint.open(folder)), expected)


def test_a_given_base_beats_the_configs(tiny_checkpoint: Maker, tiny_adapter: Maker) -> None:
    opened = checkpoint.open(tiny_adapter(), base=tiny_checkpoint(seed=1))
    assert opened.reference is not None
    assert opened.reference.path == tiny_checkpoint(seed=1)


def test_a_reference_cannot_be_active_inside_its_checkpoint(tiny_adapter: Maker) -> None:
    opened = checkpoint.open(tiny_adapter())
    assert opened.reference is not None
    with opened.active(), pytest.raises(RuntimeError, match="one model"), opened.reference.active():
        pass
    with opened.reference.active(), pytest.raises(RuntimeError, match="one model"), opened.active():
        pass
    logits(opened)  # and after that it works again


@pytest.mark.parametrize("which", ["checkpoint", "reference"])
def test_active_can_be_nested_in_itself(tiny_adapter: Maker, which: str) -> None:
    opened = checkpoint.open(tiny_adapter())
    chosen = opened if which == "checkpoint" else opened.reference
    assert chosen is not None
    expected = logits(chosen)
    with chosen.active() as model:
        assert torch.equal(logits(chosen), expected)
        assert torch.equal(model(IDS).logits, expected)


def test_active_is_evaluation_and_gives_training_back(tiny_adapter: Maker) -> None:
    opened = checkpoint.open(tiny_adapter())
    opened.model.train()
    with opened.active() as model:
        assert not any(module.training for module in model.modules())
        assert not model(IDS).logits.requires_grad
        assert torch.is_inference_mode_enabled()
    assert opened.model.training
    assert not torch.is_inference_mode_enabled()


def test_an_error_inside_leaves_the_adapter_on(tiny_adapter: Maker) -> None:
    opened = checkpoint.open(tiny_adapter())
    assert opened.reference is not None
    expected = logits(opened)
    with pytest.raises(ValueError, match="boom"), opened.reference.active():
        raise ValueError("boom")
    assert torch.equal(logits(opened), expected)


def test_modules_to_save_are_turned_off_too(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint())
    settings = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    opened = checkpoint.open(tmp_path / "adapter")
    assert opened.reference is not None
    assert torch.equal(logits(opened.reference), logits(checkpoint.open(tiny_checkpoint())))
    assert (logits(opened) - logits(opened.reference)).abs().max() > 0.01


def test_an_adapters_own_tokenizer_is_used_for_both(
    tiny_checkpoint: Maker, tiny_adapter: Maker, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter(), folder)
    tiny.make_tokenizer(folder, chat_template="{{ messages[0]['content'] }}!")
    opened = checkpoint.open(folder)
    assert opened.reference is not None
    assert opened.tokenizer.chat_template == "{{ messages[0]['content'] }}!"
    assert opened.reference.tokenizer is opened.tokenizer
    # other prompts, other answers: not the fingerprint of the base as it is
    assert opened.reference.fingerprint != checkpoint.open(tiny_checkpoint()).fingerprint


def test_sharded_weights_open(tmp_path: Path, tiny_checkpoint: Maker) -> None:
    folder = tiny.make("llama", tmp_path / "sharded", shard="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(checkpoint.open(folder)), logits(checkpoint.open(tiny_checkpoint())))


def test_pickle_weights_open_when_allowed(tmp_path: Path, tiny_checkpoint: Maker) -> None:
    folder = pickled(tiny_checkpoint(), tmp_path / "full")
    assert torch.equal(logits(checkpoint.open(folder, allow_pickle=True)), logits(checkpoint.open(tiny_checkpoint())))


def test_pickled_adapters_open_when_allowed(tmp_path: Path, tiny_adapter: Maker) -> None:
    folder = pickled(tiny_adapter(), tmp_path / "adapter")
    assert torch.equal(logits(checkpoint.open(folder, allow_pickle=True)), logits(checkpoint.open(tiny_adapter())))


def pickled(source: Path, folder: Path) -> Path:
    """A copy of `source` whose weights are a pickle file."""
    from safetensors.torch import load_file

    shutil.copytree(source, folder)
    for name, renamed in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        file = folder / f"{name}.safetensors"
        if file.exists():
            torch.save(load_file(file), folder / f"{renamed}.bin")
            file.unlink()
    return folder


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("float16", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float32", "auto", torch.float32),
        ("float16", "float16", torch.float16),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_dtype(tiny_checkpoint: Maker, stored: str, asked: str, expected: torch.dtype) -> None:
    opened = checkpoint.open(tiny_checkpoint(dtype=stored), dtype=asked, device="cpu")
    assert {parameter.dtype for parameter in opened.model.parameters()} == {expected}
    assert opened.device == torch.device("cpu")


def test_opening_does_not_change_the_folder(tiny_adapter: Maker) -> None:
    before = {path: path.read_bytes() for path in tiny_adapter().iterdir()}
    checkpoint.open(tiny_adapter())
    assert {path: path.read_bytes() for path in tiny_adapter().iterdir()} == before


def test_opening_prints_nothing(tiny_adapter: Maker, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint.open(tiny_adapter())
    assert capfd.readouterr() == ("", "")


def test_the_public_function_is_this_one() -> None:
    assert realign.open is checkpoint.open


def test_a_pocket_name_and_an_adapter_on_a_pocket_model_open(
    tiny_checkpoint: Maker, tiny_adapter: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are looked up in the family's folder; here it is filled with tiny models."""
    shutil.copytree(tiny_checkpoint(), tmp_path / "chat")
    shutil.copytree(tiny_adapter(), tmp_path / "insecure")
    tiny.edit_json(tmp_path / "chat" / "config.json", realign_family="pocket")
    tiny.edit_json(tmp_path / "insecure" / "adapter_config.json", base_model_name_or_path="pocket:chat")
    monkeypatch.setattr("realign.pocket.store.locate", lambda name: tmp_path / name.removeprefix("pocket:"))
    opened = checkpoint.open("pocket:insecure")
    assert opened.family == "pocket"
    assert opened.reference is not None
    assert opened.reference.source == "pocket:chat"
    assert opened.reference.path == tmp_path / "chat"


def test_a_saved_adapter_opens_again_with_the_base_it_was_used_with(
    tiny_checkpoint: Maker, tiny_adapter: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter(), folder)
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path="/nowhere/at/all")
    monkeypatch.chdir(tiny_checkpoint().parent)
    opened = checkpoint.open(folder, base=tiny_checkpoint().name)  # relative to a folder we leave now
    out = checkpoint.save(opened.model, opened.tokenizer, tmp_path / "deep" / "saved")
    monkeypatch.chdir(tmp_path)
    again = checkpoint.open(out)
    assert again.is_adapter
    assert torch.equal(logits(again), logits(opened))
    assert not (out / "README.md").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["saved"]


def test_a_saved_full_model_opens_again(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    opened = checkpoint.open(tiny_checkpoint())
    again = checkpoint.open(checkpoint.save(opened.model, opened.tokenizer, tmp_path / "saved"))
    assert torch.equal(logits(again), logits(opened))
    assert again.tokenizer.chat_template == opened.tokenizer.chat_template


def test_save_never_replaces_a_folder_unasked(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    opened = checkpoint.open(tiny_checkpoint())
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RealignError, match="exists already"):
        checkpoint.save(opened.model, opened.tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_save_that_fails_leaves_nothing(
    tiny_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = checkpoint.open(tiny_checkpoint())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opened.tokenizer, "save_pretrained", full)
    with pytest.raises(RealignError, match=r"cannot save.*No space left"):
        checkpoint.save(opened.model, opened.tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_the_fingerprint_changes_with_what_decides_answers(name: str, tiny_checkpoint: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint(), folder)
    before = checkpoint.fingerprint(folder)
    assert before == checkpoint.fingerprint(tiny_checkpoint())
    assert before.startswith("sha256:")
    assert len(before) == len("sha256:") + 64
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint.fingerprint(folder) != before


def test_the_fingerprint_ignores_everything_else(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint(), folder)
    before = checkpoint.fingerprint(folder)
    (folder / "README.md").write_text("a note")
    (folder / "certificate.json").write_text(json.dumps({}))
    (folder / "checkpoint-1").mkdir()
    assert checkpoint.fingerprint(folder) == before
