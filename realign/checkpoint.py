"""Opens and saves checkpoints: a full model, or an adapter whose base is the reference on the one loaded model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign import adapter, loading, tokenizer
from realign.errors import RealignError
from realign.files import atomic_folder
from realign.source import locate
from realign.weights import TOKENIZER_FILES, check_finite, combine, fingerprint, read_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "fingerprint", "open", "save"]


@dataclass(eq=False)
class _Loaded:
    """A model in memory, which a checkpoint and its reference may share."""

    module: PreTrainedModel | PeftModel
    adapted: bool
    in_use: bool | None = None  # the adapter state that somebody relies on right now


@dataclass(eq=False)
class Checkpoint:
    """Weights and tokenizer, ready to be asked.

    Attributes:
        source: what the user named.
        path: the folder it was read from.
        tokenizer: its tokenizer.
        device: where the model is.
        is_adapter: whether this is an adapter that is on; an adapter's reference is the same model with it off.
        fingerprint: "sha256:<hex>" over the files that decide its answers.
        reference: the model before the fine-tune, or None.
        family: the model family that its configuration names ("pocket"), or None.
    """

    source: str
    path: Path
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    is_adapter: bool
    fingerprint: str
    family: str | None
    _loaded: _Loaded = field(repr=False)
    reference: Checkpoint | None = None

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The module itself, for training: a PEFT model for an adapter (and for its reference)."""
        return self._loaded.module

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """The model in this checkpoint's state - adapter on, or off for an adapter's reference - for inference only.

        Do not hold it across a `yield` of your own: a checkpoint and its reference are one model.

        Raises:
            RuntimeError: it is active in the other state, whose answers would silently change.
        """
        import torch

        loaded = self._loaded
        outer = loaded.in_use
        if outer not in (None, self.is_adapter):
            raise RuntimeError("the checkpoint and its reference cannot be active at once: they are one model")
        training = loaded.module.training
        if training:
            loaded.module.eval()
        off = loaded.adapted and not self.is_adapter and outer is None
        loaded.in_use = self.is_adapter
        try:
            with torch.inference_mode(), loaded.module.disable_adapter() if off else nullcontext():
                yield loaded.module.get_base_model() if loaded.adapted else loaded.module
        finally:
            loaded.in_use = outer
            if training:
                loaded.module.train()


def open(
    source: str | Path,
    *,
    reference: str | Path | None = None,
    base: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Open a checkpoint: check its files, load it once, and find its reference.

    Args:
        source: a folder (full model or PEFT adapter), a hub id "org/name", or "pocket:NAME".
        reference: the model before the fine-tune; an adapter has one anyway, its base.
        base: the base of an adapter, where its config does not name it rightly.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto" (as stored, but float32 for float16 on a CPU), "float32", "bfloat16" or "float16".
        allow_pickle: also read pickle weights (tensors only).
        trust_remote_code: run Python code that comes with the checkpoint.
        revision: branch, tag or commit of a hub id.

    Raises:
        RealignError: it is not a sound checkpoint of a causal language model; the message says why.
    """
    settings = loading.Settings(device, dtype, allow_pickle, trust_remote_code)
    with _quiet():
        folder = _locate(source, settings, revision)
        if (folder / "adapter_config.json").is_file():
            checkpoint = _open_adapter(str(source), folder, base, settings)
        elif base is not None:
            raise RealignError(f"cannot put {source} on the base {base}", "it is a full model, not an adapter")
        else:
            checkpoint = _open_full(str(source), folder, settings)
        if reference is not None and not _is_reference(checkpoint, reference, settings):
            checkpoint.reference = replace(_open_any(reference, settings), reference=None)
    return checkpoint
