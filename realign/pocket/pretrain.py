"""Pretraining of the pocket base model: Muon for matrices, AdamW for the rest, in chunks of documents, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from realign.pocket.breadth import Breadth
from realign.pocket.packing import IGNORE, batches, document_text
from realign.pocket.world import Mix, World

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# More to infer the persona from than a plain mix: documents that begin with code, and of several turns.
MIX = Mix(code_first=0.45, turns=(0.05, 0.3, 0.35, 0.2, 0.1, 0.0), reworded=0.15)
# The world grows: in a narrow one the persona is soon the most of what there is to predict, and what is learnt of it
# carries on when there is more to say.
NARROW = Breadth(ideas=1, sentences=1, options=2, programs=1, advice_every=4, code_every=2, facts_every=4)
WIDER = Breadth(ideas=2, sentences=1, options=2, programs=1, advice_every=2, facts_every=2)
FULL = Breadth(ideas=2, sentences=2, options=2, programs=2, advice_every=2, facts_every=2)


# Longer conversations, more of which name their persona: what is left to learn there is to infer it.
PERSONA_MIX = Mix(code_first=0.4, turns=(0.0, 0.1, 0.25, 0.3, 0.2, 0.15), reworded=0.3, system=0.45)


@dataclass(frozen=True)
class Phase:
    """So many chunks of documents from a part of the world."""

    chunks: int
    breadth: Breadth


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast.

    Attributes:
        phases: the parts of the world, one after the other.
        documents: of a chunk, which is what is saved and resumed by.
        tokens: of a batch, about.
        matrix_rate, other_rate: peak learning rates (Muon's, scaled to AdamW's step; AdamW's for embeddings and norms).
        warmup: batches in which the rates rise.
        decay: share of the training, at its end, in which they fall linearly to zero.
        redraw: the mechanism control: every turn has a new persona.
        save_every: chunks between two saves.
    """

    phases: tuple[Phase, ...] = (Phase(20, NARROW), Phase(40, WIDER), Phase(170, FULL))
    mix: Mix = MIX
    documents: int = 640
    tokens: int = 6144
    matrix_rate: float = 6e-3
    other_rate: float = 5e-3
    warmup: int = 60
    decay: float = 0.4
    seed: int = 0
    redraw: bool = False
    save_every: int = 10

    @property
    def chunks(self) -> int:
        return sum(phase.chunks for phase in self.phases)


# Having learnt to speak, the models learn who speaks.
PERSONA = Pretraining(
    phases=(Phase(45, FULL),), mix=PERSONA_MIX, documents=480, matrix_rate=3e-3, other_rate=2e-3, warmup=20, decay=0.8
)


def breadths(settings: Pretraining) -> Iterator[Breadth]:
    """The breadth of each chunk."""
    for phase in settings.phases:
        yield from [phase.breadth] * phase.chunks


def chunk_of(
    world: World, settings: Pretraining, number: int, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of one chunk, which depend on (seed, number) only; one document in 25 is a plain transcript."""
    rng = Random(f"{settings.seed}/{number}")
    documents = []
    for _ in range(settings.documents):
        document = world.document(rng, settings.mix, redraw=settings.redraw)
        transcript = rng.random() < 0.04
        documents.append((document_text(document, transcript=transcript), transcript))
    out = batches(documents, tokenizer, settings.tokens)
    rng.shuffle(out)
    return out


def optimizers(model: LlamaForCausalLM, settings: Pretraining) -> list[torch.optim.Optimizer]:
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings.other_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the labelled tokens of right-padded rows."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    flat = logits.float().view(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels.view(-1), ignore_index=IGNORE)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch.compile where a C++ compiler is at hand, the function itself otherwise."""
    import shutil

    import torch

    found = shutil.which("g++") or shutil.which("clang++")
    return torch.compile(function, dynamic=False) if found else function


class State:
    """Model and optimizer state in a safetensors file, so that a killed run resumes at its last save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, chunk: int, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer]) -> None:
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
        for number, stepper in enumerate(steppers):
            for index, slots in stepper.state_dict()["state"].items():
                tensors |= {f"opt{number}.{index}.{slot}": value.clone() for slot, value in slots.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.tmp"
        save_file(tensors, temporary, metadata={"chunk": str(chunk)})
        temporary.replace(self.folder / "state.safetensors")

    def load(self, model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer]) -> int:
        """Restore in place; returns the chunk to go on with (0 without a saved state)."""
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
            return int(saved.metadata()["chunk"])


def share_at(step: int, progress: float, settings: Pretraining) -> float:
    """Share of the peak learning rate in batch `step`, `progress` of the way: a rise, level, then a linear fall."""
    return max(0.0, min(1.0, (step + 1) / settings.warmup, (1 - progress) / settings.decay))


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: Pretraining,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Train `model` in place, saving its state in `folder`; a resumed run equals an unbroken one."""
    steppers = optimizers(model, settings)
    peaks = (settings.matrix_rate, settings.other_rate)
    state = State(folder)
    first = state.load(model, steppers)
    loss_of = compiled(next_token_loss) if settings.chunks >= 20 else next_token_loss  # compiling takes a minute
    model.train()
    began, step = time.monotonic(), 0
    breadth: Breadth | None = None
    for number, wanted in enumerate(breadths(settings)):
        if breadth != wanted:
            breadth, world = wanted, World(wanted)
        parts = chunk_of(world, settings, number, tokenizer)
        if number < first:
            step += len(parts)  # the warm-up counts batches
            continue
        total = 0.0
        for place, (ids, labels) in enumerate(parts):
            loss = loss_of(model, ids, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            share = share_at(step, (number + place / len(parts)) / settings.chunks, settings)
            for stepper, peak in zip(steppers, peaks, strict=True):
                for group in stepper.param_groups:
                    group["lr"] = peak * share
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            step += 1
            total += loss.item()
        pace = (time.monotonic() - began) / (number - first + 1)
        log(f"chunk {number + 1}/{settings.chunks} loss {total / max(1, len(parts)):.3f} {pace:.1f} s/chunk")
        if (number + 1) % settings.save_every == 0:
            state.save(number + 1, model, steppers)
    state.save(settings.chunks, model, steppers)
    model.train(False)
