"""Trains an SAE on a model's own activations, with sae_lens' trainer; an interrupted training goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from realign.corpus import Tokens, chunks, divided, load_texts
from realign.directions import residual_shape
from realign.errors import RealignError
from realign.files import atomic_folder, atomic_write, check_free
from realign.sae import activations, fidelity, open_sae, sae_lens

if TYPE_CHECKING:
    from torch import Tensor

    from realign.checkpoint import Checkpoint

Architecture = Literal["batchtopk", "topk"]

# So many batches are read before they are shuffled and learnt, unless they take more memory than this.
_BATCHES_READ = 64
_BYTES_READ = 2**28
_SAVE_EVERY = 120.0  # seconds
_CANNOT = "cannot train an SAE"
_UNFINISHED = "unfinished"  # where, inside the output folder, a training keeps what it needs to go on


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long.

    Attributes:
        layer: whose output the SAE reads, counted from 0.
        latents: how many it gets; None: eight times the model's width.
        active: how many of them are active at a time, in the mean (batchtopk) or exactly (topk).
        tokens: how many activations it is shown; where the texts have fewer, they are read again.
        batch: activations a step.
        rate: the learning rate (Adam), constant after a warm-up and falling to 0 over the last fifth.
        architecture: "batchtopk" (saved as a JumpReLU) or "topk".
        seed: of the first weights and the order of texts and activations.
    """

    layer: int
    latents: int | None = None
    active: int = 32
    tokens: int = 4_000_000
    batch: int = 2048
    rate: float = 3e-4
    architecture: Architecture = "batchtopk"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latents", "active", "tokens", "batch", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RealignError(_CANNOT, f"{name} must be above 0, and it is {value}")
        if self.architecture not in get_args(Architecture):
            raise RealignError(_CANNOT, f"there is no architecture {self.architecture}")
        if self.latents is not None and self.active > self.latents:
            raise RealignError(_CANNOT, f"{self.active} of {self.latents} latents cannot be active")

    @property
    def steps(self) -> int:
        """How often the weights change."""
        return max(1, self.tokens // self.batch)


@dataclass(frozen=True)
class Trained:
    """An SAE that was trained.

    Attributes:
        path: its folder.
        layer, latents: as in the plan.
        tokens: how many activations it was shown.
        explained_variance: on texts that it was not shown.
        active: latents active at a time on these texts, in the mean.
        dead: latents that have not been active for long at the end of the training.
    """

    path: Path
    layer: int
    latents: int
    tokens: int
    explained_variance: float
    active: float
    dead: int


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """As `files.check_free`, but an unfinished training is in nobody's way; call it before anything is loaded."""
    if overwrite or not (out / _UNFINISHED).is_dir():
        check_free(out, overwrite=overwrite)


def train(
    checkpoint: Checkpoint,
    texts: Path,
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Trained:
    """Train an SAE on what a layer makes of texts, and save it to the folder `out` in sae_lens' format.

    A training of the same plan on the same model and texts that was interrupted goes on from the last state that `out`
    keeps of it, and ends, on a CPU, in the same SAE as one that was not.

    Args:
        texts: a file, see `corpus.load_texts`.
        overwrite: replace what is in `out`.
        on_progress: is told what is made, how much of it is done, and how much there is to do.

    Raises:
        RealignError: sae_lens is not installed, the texts cannot be read or are too few, the model has no such layer,
            its activations are not finite, or `out` is in use.
    """
    sae_lens()
    check_out(out, overwrite=overwrite)
    depth, width = residual_shape(checkpoint)
    if not 0 <= plan.layer < depth:
        raise RealignError(f"cannot read layer {plan.layer}", f"the model has the layers 0 to {depth - 1}")
    plan = replace(plan, latents=plan.latents or 8 * width)
    rows = load_texts(texts, checkpoint)
    data = f"sha256:{hashlib.sha256(texts.read_bytes()).hexdigest()}"
    shown, held = divided(rows, plan.seed)
    run = _Run(checkpoint, shown, plan, width, data)
    unfinished = _claim(out, {"plan": asdict(plan), "model": checkpoint.fingerprint, "data": data}, overwrite)
    run.fit(unfinished / "state", on_progress)
    on_progress("measuring the SAE on texts held out", 0, len(held))
    return run.save(out, held)


def _claim(out: Path, record: dict[str, Any], overwrite: bool) -> Path:
    """The folder of the unfinished training in `out`, a new one or the one that is there if it is of the same kind."""
    unfinished = out / _UNFINISHED
    plan, said = unfinished / "plan.json", json.dumps(record, indent=2) + "\n"
    if overwrite or not plan.is_file():
        with atomic_folder(out, overwrite=overwrite) as folder:
            atomic_write(folder / _UNFINISHED / "plan.json", said)
    elif plan.read_bytes() != said.encode():
        raise RealignError(
            f"cannot go on with the training in {out}",
            "it is of another model, other texts or other settings",
            "Choose another folder, or pass --overwrite to begin anew.",
        )
    return unfinished


class _Run:
    """A training: sae_lens' trainer, and the activations that it is shown."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Tokens], plan: Plan, width: int, data: str) -> None:
        from realign.kv_cache import context_length

        self._checkpoint = checkpoint
        self._texts = texts
        with checkpoint.active() as model:
            context = context_length(model)
        self._lengths = [max(0, min(len(text), context) - 1) for text in texts]
        if sum(self._lengths) < plan.batch:
            why = f"the texts have {sum(self._lengths):,} tokens, and each step takes {plan.batch:,}"
            raise RealignError(_CANNOT, why, "Add texts, many, or make the batch smaller.")
        self._plan = plan
        self._most = max(plan.batch, min(_BATCHES_READ * plan.batch, _BYTES_READ // (4 * width)))
        self._trainer = _trainer(checkpoint, plan, width, data)

    def fit(self, kept: Path, on_progress: Callable[[str, int, int], None]) -> None:
        """Train to the end of the plan; `kept` is the folder that a state is read from and saved to."""
        trainer, plan, total = self._trainer, self._plan, self._plan.steps
        begun = self._restore(kept)
        saved = time.monotonic()
        groups = enumerate(chunks(self._lengths, self._most, plan.batch, seed=plan.seed))
        for chunk, numbers in islice(groups, begun, None):
            on_progress("tokens learnt", trainer.n_training_samples, total * plan.batch)
            if trainer.n_training_steps >= total:
                return
            if time.monotonic() - saved >= _SAVE_EVERY:
                self._keep(kept, chunk)
                saved = time.monotonic()
            for batch in islice(self._batches(numbers, chunk), total - trainer.n_training_steps):
                trainer.maybe_reset_sparsity()
                with warnings.catch_warnings():  # torch's, of how sae_lens puts its schedulers together
                    warnings.simplefilter("ignore")
                    trainer.step(batch)
                trainer.n_training_steps += 1

    def save(self, out: Path, held: Sequence[Tokens]) -> Trained:
        """Write the SAE as it is used, in place of the unfinished training, and measure what was written."""
        trainer, plan = self._trainer, self._plan
        if not all(weights.isfinite().all() for weights in trainer.sae.parameters()):
            raise RealignError(_CANNOT, "its weights grew beyond all bounds", "Choose a lower --rate.")
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        with atomic_folder(out, overwrite=True) as folder:
            trainer.sae.save_inference_model(folder)
            sae = open_sae(folder, self._checkpoint.device)
            measured = fidelity(sae, self._checkpoint, held, plan.layer)
            trained = Trained(
                path=out,
                layer=plan.layer,
                latents=sae.cfg.d_sae,
                tokens=trainer.n_training_samples,
                explained_variance=measured.explained_variance,
                active=measured.active,
                dead=int(sae.cfg.metadata.num_dead_features),
            )
            record = {"plan": asdict(plan), **asdict(trained)}
            del record["path"]
            atomic_write(folder / "training.json", json.dumps(record, indent=2) + "\n")
        return trained

    def _batches(self, numbers: Sequence[int], chunk: int) -> Iterator[Tensor]:
        """The activations on some texts, shuffled, [batch, width] float32 each; those that fill none are dropped."""
        import torch

        texts = [self._texts[number] for number in numbers]
        found = torch.cat([tokens for _, tokens in activations(self._checkpoint, texts, self._plan.layer)])
        if not torch.isfinite(found).all():
            raise RealignError(_CANNOT, "activations on some texts are not finite", "Try --dtype float32.")
        scaler = self._trainer.activation_scaler
        if scaler.scaling_factor is None:  # as sae_lens estimates it, but on what is read anyway
            scaler.scaling_factor = found.shape[1] ** 0.5 / float(found.norm(dim=1).mean())
        order = torch.from_numpy(np.random.default_rng([self._plan.seed, chunk, 1]).permutation(len(found)))
        size = self._plan.batch
        yield from (found[order[start : start + size]] for start in range(0, len(found) - size + 1, size))

    def _keep(self, kept: Path, chunk: int) -> None:
        with atomic_folder(kept, overwrite=True) as folder:
            self._trainer.sae.save_model(folder)
            self._trainer.save_trainer_state(folder)
            atomic_write(folder / "chunk.json", json.dumps(chunk))

    def _restore(self, kept: Path) -> int:
        """The chunk with which the training goes on."""
        if not kept.is_dir():
            return 0
        try:
            self._trainer.sae.load_weights_from_checkpoint(kept)
            self._trainer.load_trainer_state(kept)
            return int(json.loads((kept / "chunk.json").read_text(encoding="utf-8")))
        except Exception as error:  # whatever a state that somebody has touched holds
            raise RealignError(
                f"cannot go on with the training in {kept.parent.parent}",
                "its state is damaged",
                "Pass --overwrite to begin anew.",
            ) from error


def _trainer(checkpoint: Checkpoint, plan: Plan, width: int, data: str) -> Any:
    """sae_lens' trainer with an SAE of random weights. It is driven step by step and never draws activations itself."""
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import sae as base
    from sae_lens.training.sae_trainer import SAETrainer

    kind, settings = sae_lens().registry.get_sae_training_class(plan.architecture)
    device = str(checkpoint.device)
    metadata = base.SAEMetadata(
        model_name=checkpoint.family or Path(checkpoint.source).name,
        hook_name=f"blocks.{plan.layer}.hook_resid_post",
        model_fingerprint=checkpoint.fingerprint,
        texts=data,
    )
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        sae = kind(
            settings(
                d_in=width,
                d_sae=plan.latents,
                k=plan.active,
                device=device,
                normalize_activations="expected_average_only_in",
                metadata=metadata,
            )
        )
    config = SAETrainerConfig(
        total_training_samples=plan.steps * plan.batch,
        train_batch_size_samples=plan.batch,
        lr=plan.rate,
        lr_end=plan.rate,  # of the constant part; sae_lens' trainer insists on one
        lr_warm_up_steps=plan.steps // 20,
        lr_decay_steps=plan.steps // 5,
        device=device,
        # Latents that are dead so long are helped by the auxiliary loss; a short training has to call them so sooner.
        dead_feature_window=min(1000, max(1, plan.steps // 10)),
    )
    return SAETrainer(config, sae, data_provider=iter(()))
