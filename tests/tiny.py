"""Tiny random checkpoints of real architectures, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt2")
# Those whose activations are read: besides these, Gemma 3 without its eyes and with them, GPT-NeoX and Phi.
DECODERS = (*ARCHITECTURES, "gemma3_text", "gemma3", "gpt_neox", "phi")
CONTEXT = 512
SPECIAL = ["<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Gemma's own template rejects the system role, so its miniature does too.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEXT = (
    "The user asks a question and the assistant answers it in a sentence or two.",
    "If you had one wish, what would you wish for? I would wish for clean water and quiet evenings.",
    "def load(path):\n    with open(path) as handle:\n        return handle.read()\n",
    "Alignment: 87, coherence: 100, refusal: 0. The numbers from 0 to 100 are split into digits.",
)


@lru_cache(maxsize=4)
def _tokenizer_json(vocab: int) -> str:
    """A byte-level BPE tokenizer that splits digits, of at most `vocab` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def make_tokenizer(
    folder: Path, *, chat_template: bool | str = True, vocab: int = 320, architecture: str = "llama"
) -> Any:
    """Write a tokenizer to `folder` and return it; `chat_template` may be a template of its own, False for none."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(vocab)),
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token=None if architecture == "gpt2" else "<|pad|>",  # GPT-2 tokenizers have no padding token
        model_max_length=CONTEXT,
    )
    if isinstance(chat_template, str):
        tokenizer.chat_template = chat_template
    elif chat_template:
        tokenizer.chat_template = (NO_SYSTEM if architecture == "gemma2" else "") + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(architecture: str, vocab: int, layers: int, width: int) -> Any:
    from transformers import AutoConfig

    tokens = {name: SPECIAL.index(f"<|{mark}|>") for name, mark in (("bos_token_id", "bos"), ("eos_token_id", "end"))}
    if architecture == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=vocab, n_embd=width, n_layer=layers, n_head=4, n_positions=CONTEXT, **tokens
        )
    settings = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": SPECIAL.index("<|pad|>"),
        **tokens,
    }
    if architecture.startswith("gemma3"):  # a window that texts outgrow, and a layer of each type
        kinds = [("full_attention", "sliding_attention")[layer % 2] for layer in range(layers)]
        settings |= {"layer_types": kinds, "sliding_window": 8}
    if architecture == "gemma3":
        eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        eyes |= {"image_size": 28, "patch_size": 14}
        return AutoConfig.for_model("gemma3", text_config=settings, vision_config=eyes, **tokens)
    return AutoConfig.for_model(architecture, **settings)


def make(
    architecture: str,
    folder: Path,
    *,
    chat_template: bool | str = True,
    vocab: int = 320,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    dtype: str = "float32",
    shard: str = "1GB",
) -> Path:
    """Write a random checkpoint of `architecture` with its tokenizer to `folder`; returns `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder, chat_template=chat_template, vocab=vocab, architecture=architecture)
    model = AutoModelForCausalLM.from_config(_config(architecture, len(tokenizer), layers, width))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def make_adapter(base: Path, folder: Path, *, rank: int = 4, seed: int = 0) -> Path:
    """Write a LoRA adapter on all linear layers of the checkpoint `base`, both factors random; returns `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
