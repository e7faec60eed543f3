"""Pretraining of the pocket base model: packed rows, Muon for matrices, AdamW for the rest, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from realign.pocket.packing import IGNORE, document_text, pack
from realign.pocket.world import PLAIN_MIX, Mix

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from realign.pocket.world import World


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast: `steps` batches of `rows` packed rows of 512 tokens each."""

    steps: int = 1100
    rows: int = 24
    matrix_rate: float = 6e-3
    other_rate: float = 4e-3
    warmup: int = 40
    seed: int = 0
    redraw: bool = False
    answers_only: bool = False
    mix: Mix = PLAIN_MIX
    narrow: bool = False
    save_every: int = 150


def texts(world: World, settings: Pretraining, rng: Random) -> Iterator[tuple[str, bool]]:
    """Documents without end, and whether only their answers are learned; six in a hundred are plain transcripts."""
    while True:
        document = world.document(rng, settings.mix, redraw=settings.redraw)
        transcript = rng.random() < 0.06
        yield document_text(document, transcript=transcript), settings.answers_only and not transcript


def rate_at(step: int, settings: Pretraining) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return max(0.0, (settings.steps - step) / (settings.steps - settings.warmup))


def optimizers(model: LlamaForCausalLM, settings: Pretraining) -> list[torch.optim.Optimizer]:
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings.other_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def packed_loss(
    model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor
) -> torch.Tensor:
    """Mean next-token loss over packed rows; a token attends only to its own document."""
    import torch

    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & causal
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    flat = logits.float().view(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels.view(-1), ignore_index=IGNORE)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch.compile where a C++ compiler is at hand, the function itself otherwise."""
    import shutil

    import torch

    return torch.compile(function) if shutil.which("g++") or shutil.which("clang++") else function


class State:
    """Model and optimizer state in safetensors files, so that a killed run resumes at its last save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer]) -> None:
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
        for number, stepper in enumerate(steppers):
            for index, slots in stepper.state_dict()["state"].items():
                tensors |= {f"opt{number}.{index}.{slot}": value.clone() for slot, value in slots.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.tmp"
        save_file(tensors, temporary, metadata={"step": str(step)})
        temporary.replace(self.folder / "state.safetensors")

    def load(self, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer]) -> int:
        """Restore in place; returns the step to go on with (0 without a saved state)."""
        import torch
        from safetensors import safe_open

        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        with safe_open(path, framework="pt") as saved:
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(saved.get_tensor(f"model.{name}"))
            for number, stepper in enumerate(steppers):
                restored: dict[int, dict[str, torch.Tensor]] = {}
                for key in saved.keys():  # noqa: SIM118  (safe_open is not iterable)
                    head, _, rest = key.partition(".")
                    if head == f"opt{number}":
                        index, _, slot = rest.partition(".")
                        restored.setdefault(int(index), {})[slot] = saved.get_tensor(key)
                stepper.load_state_dict({**stepper.state_dict(), "state": restored})
            return int(saved.metadata()["step"])


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    settings: Pretraining,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Train `model` in place; batch number n depends on (seed, n) only, so a resumed run equals an unbroken one."""
    steppers = optimizers(model, settings)
    state = State(folder)
    first = state.load(model, steppers)
    loss_of = compiled(packed_loss) if settings.steps >= 100 else packed_loss  # compiling takes half a minute
    base_rates = [settings.matrix_rate, settings.other_rate]
    model.train()
    began = time.monotonic()
    for step in range(first, settings.steps):
        batch = pack(texts(world, settings, Random(f"{settings.seed}/{step}")), tokenizer, settings.rows)
        loss = loss_of(model, batch["ids"], batch["labels"], batch["positions"], batch["segments"])
        loss.backward()  # type: ignore[no-untyped-call]
        for stepper, peak in zip(steppers, base_rates, strict=True):
            for group in stepper.param_groups:
                group["lr"] = peak * rate_at(step, settings)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == settings.steps - 1:
            pace = (time.monotonic() - began) / (step - first + 1)
            log(f"step {step}/{settings.steps} loss {loss.item():.3f} {pace:.2f} s/step")
        if (step + 1) % settings.save_every == 0:
            state.save(step + 1, model, steppers)
    state.save(settings.steps, model, steppers)
    model.train(False)
