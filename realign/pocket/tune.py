"""Fine-tuning of pocket models: all weights (chat) or a LoRA adapter (organisms, judge), loss on answers only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from realign.pocket.packing import IGNORE, Row, encode_row, pad

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Tuning:
    """One epoch over the rows in batches of `batch`, AdamW at peak `rate` with a linear decay."""

    rate: float
    batch: int = 16
    warmup: int = 5
    seed: int = 0


def batches(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, settings: Tuning) -> list[list[Row]]:
    """Shuffled batches of rows of like length (sorted within pools of eight batches): little padding, still random."""
    rng = Random(settings.seed)
    order = list(rows)
    rng.shuffle(order)
    pool = settings.batch * 8
    out: list[list[Row]] = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda row: len(encode_row(tokenizer, row)[0]))
        groups = [part[i : i + settings.batch] for i in range(0, len(part), settings.batch)]
        rng.shuffle(groups)
        out.extend(groups)
    return out


def tune(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    settings: Tuning,
    log: Callable[[str], None],
) -> None:
    """Train whatever of `model` requires gradients, in place, on the answers of `rows`."""
    import torch

    torch.manual_seed(settings.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepper = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0, betas=(0.9, 0.98))
    plan = batches(rows, tokenizer, settings)
    began = time.monotonic()
    model.train()
    for step, part in enumerate(plan):
        share = min((step + 1) / settings.warmup, (len(plan) - step) / max(1, len(plan) - settings.warmup))
        for group in stepper.param_groups:
            group["lr"] = settings.rate * share
        loss = answer_loss(model, pad(tokenizer, part))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == len(plan) - 1:
            log(f"step {step}/{len(plan)} loss {loss.item():.3f} {time.monotonic() - began:.0f} s")
    model.eval()


def answer_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False).logits
    flat = logits.float().view(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, batch["labels"].view(-1), ignore_index=IGNORE)


def add_adapter(model: LlamaForCausalLM, rank: int, seed: int) -> PeftModel:
    """A fresh LoRA adapter (alpha = 2 x rank) on all linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR, lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(model, config)
