"""Opens and saves checkpoints: a full model, or an adapter whose base is the reference on the one loaded model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign import adapter, loading, tokenizer
from realign.errors import RealignError
from realign.files import atomic_folder
from realign.source import locate
from realign.weights import TOKENIZER_FILES, check, check_finite, combine, fingerprint, read_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "fingerprint", "open", "save"]


@dataclass(eq=False)
class _Loaded:
    """A model in memory, which a checkpoint and its reference may share."""

    module: PreTrainedModel | PeftModel
    model: PreTrainedModel  # the module itself, or the model inside the PEFT model
    in_use: bool | None = None  # the adapter state that somebody relies on right now

    @property
    def adapted(self) -> bool:
        return self.module is not self.model

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """As PEFT's `disable_adapter`, less its survey of all layers, which costs as much as many a token."""
        tuner: Any = self.module.base_model
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()


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
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
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
            with loaded.adapter_off() if off else nullcontext(), torch.inference_mode():
                yield loaded.model
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
        elif base is None:
            checkpoint = _open_full(str(source), folder, settings)
        else:
            raise RealignError(f"cannot put {source} on the base {base}", "it is a full model, not an adapter")
    own = checkpoint.reference
    if reference is not None and (own is None or own.path.resolve() != _locate(reference, settings).resolve()):
        checkpoint.reference = open(
            reference, device=device, dtype=dtype, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
        )
    return checkpoint


def _locate(source: str | Path, settings: loading.Settings, revision: str | None = None) -> Path:
    return locate(
        source,
        revision=revision,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
    )


def _open_full(source: str, folder: Path, settings: loading.Settings) -> Checkpoint:
    sound = loading.check(folder, settings)
    words = tokenizer.load(folder, trust_remote_code=settings.trust_remote_code)
    model = loading.load(sound, settings)
    _check_loaded(model, model, words, source)
    family = getattr(model.config, "realign_family", None)
    loaded = _Loaded(model, model)
    return Checkpoint(source, folder, words, model.device, False, fingerprint(folder), family, loaded)


def _open_adapter(source: str, folder: Path, base: str | Path | None, settings: loading.Settings) -> Checkpoint:
    found = check(folder, "adapter_model", allow_pickle=settings.allow_pickle)
    base_name, base_folder = _find_base(folder, base, settings)
    sound = loading.check(base_folder, settings)
    words, own_words = _adapter_tokenizer(folder, base_folder, settings)
    model = loading.load(sound, settings)
    adapted = adapter.put(model, folder, found, base_name)
    _check_loaded(adapted, model, words, source)
    before = fingerprint(base_folder)
    after = combine(fingerprint(folder), before)
    if own_words:  # the reference is asked through the adapter's tokenizer: the same questions in the same tokens
        before = combine(before, fingerprint(folder, TOKENIZER_FILES))
    family = getattr(model.config, "realign_family", None)
    loaded = _Loaded(adapted, model)
    reference = Checkpoint(base_name, base_folder, words, model.device, False, before, family, loaded)
    return Checkpoint(source, folder, words, model.device, True, after, family, loaded, reference)


def _find_base(folder: Path, given: str | Path | None, settings: loading.Settings) -> tuple[str, Path]:
    """Name and folder of an adapter's base: the one given, the one its config names, or `base/` inside its folder."""
    config = read_json(folder / "adapter_config.json")
    named = given or config.get("base_model_name_or_path")
    inside = folder / "base"
    if not named and not inside.is_dir():
        raise RealignError(f"cannot open {folder}", "its adapter_config.json names no base", "Name it with --base.")
    if named:
        local = Path(named).expanduser().exists()
        try:
            found = _locate(named, settings, None if local or given else config.get("revision"))
            return (str(found.resolve()) if local else str(named)), found
        except RealignError as error:
            if given or not inside.is_dir():
                why = f"its base {named} is not found ({error.why})"
                raise RealignError(f"cannot open {folder}", why, "Name the base with --base.") from error
    return str(inside.resolve()), _locate(inside, settings)


def _adapter_tokenizer(folder: Path, base: Path, settings: loading.Settings) -> tuple[PreTrainedTokenizerBase, bool]:
    """The adapter's own tokenizer if it brings one (then True), otherwise its base's."""
    trust = settings.trust_remote_code
    if not tokenizer.has_tokenizer(folder):
        return tokenizer.load(base, trust_remote_code=trust), False
    words = tokenizer.load(folder, trust_remote_code=trust)
    if tokenizer.has_tokenizer(base):
        tokenizer.check_same_numbering(words, tokenizer.load(base, trust_remote_code=trust), str(folder))
    return words, True


def _check_loaded(module: torch.nn.Module, model: PreTrainedModel, words: PreTrainedTokenizerBase, source: str) -> None:
    embedding: Any = model.get_input_embeddings()
    tokenizer.check_fits(words, embedding.weight.shape[0], source)
    check_finite(module, source)


def save(
    model: PreTrainedModel | PeftModel, words: PreTrainedTokenizerBase, out: Path, *, overwrite: bool = False
) -> Path:
    """Write an ordinary Hugging Face (or, for a PEFT model, adapter) folder with its tokenizer; returns `out`.

    The folder appears under its name only when it is whole.

    Raises:
        RealignError: `out` is in use (see `files.check_free`), or it cannot be written.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    options: dict[str, Any] = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    try:
        with atomic_folder(out, overwrite=overwrite) as folder, _quiet():
            model.save_pretrained(str(folder), **options)
            words.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, with nothing filled in
    except (OSError, SafetensorError) as error:
        raise RealignError(f"cannot save to {out}", str(error), "Make room, or choose another folder.") from error
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings of the libraries: what matters is checked and told by us."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
