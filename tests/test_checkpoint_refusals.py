"""What is not a sound checkpoint is refused with one message that says why and how to mend it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from realign import checkpoint
from realign.errors import RealignError
from tests import tiny

Maker = Callable[..., Path]


def refused(source: str | Path, why: str, **options: object) -> str:
    """Opening fails with a message that matches `why`; returns the whole message."""
    with pytest.raises(RealignError, match=why) as error:
        checkpoint.open(source, **options)  # type: ignore[arg-type]
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def full(tiny_checkpoint: Maker, tmp_path: Path) -> Path:
    """A sound full model, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "full"))


@pytest.fixture
def adapter(tiny_adapter: Maker, tmp_path: Path) -> Path:
    """A sound adapter, to be damaged."""
    return Path(shutil.copytree(tiny_adapter(), tmp_path / "adapter"))


def test_the_fixtures_are_sound(full: Path, adapter: Path) -> None:
    checkpoint.open(full)
    checkpoint.open(adapter)


# -- what is named ------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(full: Path) -> None:
    message = refused(full.parent / "ful", "there is no such folder")
    assert 'Did you mean "full"?' in message
    assert "org/name" in refused(full.parent / "zzz", "there is no such folder")
    refused(full.parent / "no" / "such", f"{full.parent / 'no'} does not exist either")


def test_a_misspelt_relative_path_is_not_taken_for_a_hub_id(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(full.parent.parent)
    message = refused(f"{full.parent.name}/ful", "there is no such folder")
    assert 'Did you mean "full"?' in message


def test_a_file(full: Path) -> None:
    assert (
        str(full) in refused(full / "model.safetensors", "it is a file; a checkpoint is a folder").split("folder", 1)[1]
    )


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty")


def test_a_folder_of_checkpoints(full: Path) -> None:
    message = refused(full.parent, "it holds neither config.json")
    assert f"Did you mean {full}?" in message


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "it holds neither config.json")


def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = refused("some-org/some-model", "the hub cannot be reached")
    assert "HF_HUB_OFFLINE" in message


def test_a_revision_of_a_local_folder(full: Path) -> None:
    refused(full, "a revision belongs to a hub id", revision="main")


def test_a_pocket_model_that_is_not_there() -> None:
    refused("pocket:nonsense", "no pocket model 'nonsense'")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"dtype": "floot16"}, 'Did you mean "float16"'),
        ({"base": "pocket:chat"}, "it is a full model, not an adapter"),
    ],
)
def test_options_that_cannot_be_met(full: Path, options: dict[str, str], why: str) -> None:
    refused(full, why, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(full: Path) -> None:
    refused(full, "PyTorch does not find it here", device="cuda")


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(full: Path, keep: float) -> None:
    file = full / "model.safetensors"
    os.truncate(file, int(file.stat().st_size * keep))
    refused(full, r"model.safetensors: it is cut off or damaged \([\d,]+ bytes")


def test_weights_of_garbage(full: Path) -> None:
    (full / "model.safetensors").write_bytes(b"\xff" * 1000)
    refused(full, "cut off or damaged")


def test_a_git_lfs_pointer(full: Path) -> None:
    (full / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(full, "it is a Git LFS pointer")


def test_no_weights(full: Path) -> None:
    (full / "model.safetensors").unlink()
    refused(full, "it has no weights: model.safetensors is missing")


def test_a_trainers_leftovers_are_no_weights(full: Path) -> None:
    (full / "model.safetensors").unlink()
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (full / name).write_bytes(b"x")
    refused(full, "it has no weights")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.make("llama", tmp_path / "sharded", shard="60KB")


def test_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    refused(sharded, f"names the shard {shard.name}, which is not there")


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 10)
    refused(sharded, f"{shard.name}: it is cut off or damaged")


def test_an_index_that_names_another_tensor(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    tiny.edit_json(index, weight_map={**shards, "model.extra.weight": min(shards.values())})
    refused(sharded, "lacks the tensor model.extra.weight")


@pytest.mark.parametrize("weight_map", [None, {}, {"a": 1}, ["a"]])
def test_an_index_without_shards(sharded: Path, weight_map: object) -> None:
    tiny.edit_json(sharded / "model.safetensors.index.json", weight_map=weight_map)
    refused(sharded, "names no shards")


def test_an_index_that_leads_out_of_the_folder(sharded: Path, full: Path) -> None:
    tiny.edit_json(sharded / "model.safetensors.index.json", weight_map={"a": "../full/model.safetensors"})
    refused(sharded, "which is not there")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_weights_unless_allowed(full: Path, name: str) -> None:
    (full / "model.safetensors").rename(full / name)
    assert "--allow-pickle" in refused(full, f"its weights are pickle files \\({name}\\)")


def test_a_pickled_adapter_unless_allowed(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, r"its weights are pickle files \(adapter_model.bin\)")


class Mark:
    """What a hostile pickle would do: leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_pickle_that_holds_a_program_is_never_run(
    full: Path, adapter: Path, tmp_path: Path, kind: str, protocol: str
) -> None:
    folder, name = (full, "pytorch_model.bin") if kind == "full" else (adapter, "adapter_model.bin")
    next(folder.glob("*.safetensors")).unlink()
    content = {"weight": Mark(tmp_path / "ran")}
    if protocol == "torch":
        torch.save(content, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(content))
    refused(folder, "it holds more than tensors, or is damaged", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_another_name(full: Path) -> None:
    (full / "model.safetensors").rename(full / "model.pt")
    refused(full, "pytorch_model.bin is not there, only model.pt", allow_pickle=True)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(full: Path, value: float) -> None:
    rewrite(full / "model.safetensors", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
    refused(full, r"model.layers.1.mlp.up_proj.weight hold NaN or infinite values in float32")


def test_an_adapter_that_is_not_finite(adapter: Path) -> None:
    rewrite(adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    refused(adapter, "hold NaN or infinite values")


def test_weights_that_overflow_in_the_dtype_asked_for(full: Path) -> None:
    rewrite(full / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    checkpoint.open(full)
    assert "--dtype float32" in refused(
        full, "model.norm.weight hold NaN or infinite values in float16", dtype="float16"
    )


def test_weights_that_lack_a_tensor(full: Path) -> None:
    rewrite(full / "model.safetensors", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(full, "1 tensors are missing, such as model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape(full: Path) -> None:
    tiny.edit_json(full / "config.json", intermediate_size=48)
    refused(full, "its weights do not fit its config.json")


# -- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_config_that_is_not_json(full: Path, content: str) -> None:
    (full / "config.json").write_text(content)
    refused(full, r"cannot read .*config.json")


def test_an_unknown_architecture(full: Path) -> None:
    tiny.edit_json(full / "config.json", model_type="quantum")
    refused(full, "does not know the model type 'quantum'")


def test_remote_code_unless_trusted(full: Path) -> None:
    tiny.edit_json(
        full / "config.json", model_type="homemade", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    )
    (full / "code.py").write_text("raise SystemExit('the code ran')")
    assert "--trust-remote-code" in refused(full, "its architecture is Python code that comes with the checkpoint")


def test_a_remote_tokenizer_unless_trusted(full: Path) -> None:
    tiny.edit_json(
        full / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Mine", "code.Mine"]}
    )
    (full / "code.py").write_text("raise SystemExit('the code ran')")
    refused(full, "its tokenizer is Python code that comes with the checkpoint")


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "LlamaModel"])
def test_not_a_causal_language_model(full: Path, architecture: str) -> None:
    tiny.edit_json(full / "config.json", architectures=[architecture])
    refused(full, rf"it is not a causal language model \({architecture}\)")


def test_a_model_type_without_a_causal_model(full: Path) -> None:
    tiny.edit_json(full / "config.json", model_type="vit", architectures=None)
    refused(full, r"it is not a causal language model \(vit\)")


# -- tokenizer ----------------------------------------------------------------------------------------------------


def test_no_tokenizer(full: Path) -> None:
    (full / "tokenizer.json").unlink()
    refused(full, "it has no tokenizer")


def test_a_damaged_tokenizer(full: Path) -> None:
    (full / "tokenizer.json").write_text("{")
    refused(full, "its tokenizer cannot be read")


def test_a_tokenizer_larger_than_the_embedding(full: Path) -> None:
    tiny.make_tokenizer(full, vocab=340)
    refused(full, r"its tokenizer is larger than the model's embedding \(3[34]\d tokens, 320 rows\)")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "its chat template fails on a plain question"),
        ("{{ raise_exception('only system turns') }}", r"fails on a plain question \(only system turns\)"),
        ("{{ messages[3]['content'] + 1 }}", "its chat template fails on a plain question"),
        ("<|user|>", "its chat template leaves the question out"),
    ],
)
def test_a_broken_chat_template(full: Path, template: str, why: str) -> None:
    (full / "chat_template.jinja").write_text(template)
    refused(full, why)


# -- adapters -----------------------------------------------------------------------------------------------------


def test_an_adapter_whose_base_is_not_found(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "gone"))
    assert "--base" in refused(adapter, "its base .*gone is not found")
    refused(adapter, "there is no such folder", base=adapter.parent / "gone too")


def test_an_adapter_whose_base_is_on_a_hub_out_of_reach(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path="some-org/some-model", revision="main")
    refused(adapter, r"its base some-org/some-model is not found \(.*the hub cannot be reached")


def test_an_adapter_that_names_no_base(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    refused(adapter, "its adapter_config.json names no base")


def test_an_adapter_for_another_shape(adapter: Path, tiny_checkpoint: Maker) -> None:
    refused(adapter, "the adapter was made for another base than .*size mismatch", base=tiny_checkpoint(width=64))


def test_an_adapter_for_another_architecture(adapter: Path, tiny_checkpoint: Maker) -> None:
    refused(adapter, "the adapter was made for another base than", base=tiny_checkpoint("gpt2"))


@pytest.mark.parametrize(
    ("layers", "why"), [(1, "has no place for 14 tensors"), (3, "leaves 14 places of this base empty")]
)
def test_an_adapter_for_another_depth(adapter: Path, tiny_checkpoint: Maker, layers: int, why: str) -> None:
    tiny.edit_json(
        adapter / "adapter_config.json",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    refused(adapter, why, base=tiny_checkpoint(layers=layers))


def test_an_adapter_for_another_vocabulary(adapter: Path) -> None:
    tiny.make_tokenizer(adapter)
    content = json.loads((adapter / "tokenizer.json").read_text())
    words = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    turned = {word: number for (word, _), (_, number) in zip(words, words[10:] + words[:10], strict=True)}
    content["model"]["vocab"] = turned
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    refused(adapter, r"made for another base: its tokenizer numbers only \d+ of the base's 320 tokens alike")


def test_an_adapter_for_a_larger_vocabulary(adapter: Path) -> None:
    tokenizer = tiny.make_tokenizer(adapter)
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(adapter)
    refused(adapter, r"its tokenizer is larger than the model's embedding \(321 tokens, 320 rows\)")


def test_an_adapter_for_another_task(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", task_type="SEQ_CLS")
    refused(adapter, "it is an adapter for the task SEQ_CLS")


def test_an_adapter_that_is_a_prompt(adapter: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
    refused(adapter, "PROMPT_TUNING adapters change the prompt")


def test_an_adapter_that_replaces_weights_of_its_base(adapter: Path, full: Path) -> None:
    embedding = load_file(full / "model.safetensors")["model.embed_tokens.weight"]
    key = "base_model.model.model.embed_tokens.weight"
    rewrite(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({key: embedding}))
    assert "--reference" in refused(adapter, rf"it replaces {key}")


def test_an_adapter_that_trains_biases(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", bias="all")
    refused(adapter, "it replaces biases")


def test_an_adapter_of_an_unknown_type(adapter: Path) -> None:
    tiny.edit_json(adapter / "adapter_config.json", peft_type="TELEPATHY")
    refused(adapter, "TELEPATHY")


def test_truncated_adapter_weights(adapter: Path) -> None:
    os.truncate(adapter / "adapter_model.safetensors", 500)
    refused(adapter, "adapter_model.safetensors: it is cut off or damaged")


def test_an_adapter_without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "it has no weights: adapter_model.safetensors is missing")


def test_an_adapter_without_any_tokenizer(adapter: Path, full: Path) -> None:
    (full / "tokenizer.json").unlink()
    refused(adapter, "it has no tokenizer", base=full)
