"""Trains an adapter on rows, through TRL's SFTTrainer: the loss is on answers only."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from realign.errors import RealignError
from realign.remedy.recipe import Effort, Witness
from realign.remedy.rows import Row

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig

_IGNORED = -100  # the label of a token that is not supervised


class Training(BaseModel):
    """How the samples are learnt.

    Attributes:
        rank, alpha, rslora: of the low-rank adapter that a full model gets; an adapter keeps its own.
        lr: peak learning rate; it decays linearly to 0.
        epochs: passes over the samples.
        batch: samples of an optimizer step.
        warmup: optimizer steps in which the learning rate rises.
        loss: "nll", the negative log-likelihood of each token, or "dft", which weighs it by the token's own probability
            (Dynamic Fine-Tuning, arXiv:2508.05629): what the model would hardly say is not forced on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[int, Field(ge=1)] = 64
    rslora: bool = True
    lr: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    epochs: Annotated[float, Field(gt=0)] = 1
    batch: Annotated[int, Field(ge=1)] = 4
    warmup: Annotated[int, Field(ge=0)] = 5
    loss: Literal["nll", "dft"] = "nll"


@dataclass(frozen=True, kw_only=True)
class Trained(Effort):
    """What a training took.

    Attributes:
        rows: samples used.
        supervised: tokens supervised in one pass over them.
        steps: optimizer steps.
        loss: mean loss over the training.
    """

    rows: int
    supervised: int
    steps: int
    loss: float


def steps_of(settings: Training, rows: int) -> int:
    """Optimizer steps for so many rows."""
    return math.ceil(settings.epochs * math.ceil(rows / settings.batch))


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: Training,
    *,
    device: torch.device,
    seed: int,
    witness: Witness,
) -> Trained:
    """Train what requires gradients of `model`, in place, on the answers of `rows`.

    Nothing but the weights is changed: neither the model's configuration nor its tokenizer, nor its forward.

    Raises:
        RealignError: memory does not suffice, or the training diverges.
    """
    import torch

    steps = steps_of(settings, len(rows))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, quiet(), _unchanged(model):
            arguments = _arguments(settings, folder, steps=steps, device=device, dtype=model.dtype, seed=seed)
            loss = _run(model, tokenizer, rows, arguments, witness)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RealignError(
            "cannot train this checkpoint",
            f"a batch of {settings.batch} samples does not fit in the memory of {device}",
            "Lower `batch` in the recipe, or try --dtype bfloat16.",
        ) from error
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not math.isfinite(loss) or not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise RealignError("the training diverged", "weights or loss are not finite", "Lower `lr` in the recipe.")
    return Trained(
        rows=len(rows),
        supervised=sum(len(row.learnt) for row in rows),
        steps=steps,
        loss=loss,
        seconds=time.monotonic() - began,
    )


def _arguments(
    settings: Training, folder: str, *, steps: int, device: torch.device, dtype: torch.dtype, seed: int
) -> SFTConfig:
    import torch
    from trl.trainer.sft_config import SFTConfig

    on_gpu = device.type == "cuda"
    half = on_gpu and dtype != torch.float32
    bf16 = half and torch.cuda.is_bf16_supported()
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=settings.batch,
        max_steps=steps,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=min(settings.warmup, steps // 2),
        optim="adamw_torch",
        weight_decay=0.0,
        loss_type=settings.loss,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=device.type == "cpu",
        bf16=bf16,
        fp16=half and not bf16,
        gradient_checkpointing=False,
        dataloader_pin_memory=on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows come in tokens, none is cut off
        max_length=None,
        packing=False,
        completion_only_loss=False,  # the labels say it already
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a model on one of several GPUs stays there
    return arguments


def _run(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    arguments: SFTConfig,
    witness: Witness,
) -> float:
    """The mean loss of the training."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.sft_trainer import SFTTrainer

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            witness.step("training steps", state.global_step, state.max_steps)

    labels = [[_IGNORED] * len(row.given) + list(row.learnt) for row in rows]
    data = Dataset.from_dict({"input_ids": [[*row.given, *row.learnt] for row in rows], "labels": labels})
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=_padded,  # TRL's own would write its padding token into tokenizer and config
        processing_class=tokenizer,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    return float(trainer.train().training_loss)


def _padded(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """A batch of rows, [rows, longest] int64, padded on the right with what is neither attended to nor learnt."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
    }


@contextmanager
def _unchanged(model: PeftModel) -> Iterator[None]:
    """Undoes what trainers do to a model besides training it: special tokens, routing and forward are as before."""
    plain = model.get_base_model()
    configs = [config for config in (plain.config, plain.generation_config) if config is not None]
    before = [copy.deepcopy(vars(config)) for config in configs]
    forward = vars(plain).get("forward")
    try:
        yield
    finally:
        for config, values in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(values)
        vars(plain).pop("forward", None)
        if forward is not None:
            plain.forward = forward
        model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and log lines of the libraries: what matters is checked and told by us."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
