"""Loads a causal language model from a folder; what is not one, or does not fit, is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign import weights
from realign.errors import RealignError, did_you_mean
from realign.tokenizer import needs_remote_code

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """How to load: device and dtype by name, and what the user trusts."""

    device: str = "auto"
    dtype: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False


def choose_device(name: str) -> torch.device:
    """The device of that name ("cuda:1" works too); "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        RealignError: there is no such device here.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    kind, _, number = name.partition(":")
    if kind not in there or (number and not number.isdigit()):
        raise RealignError(
            f"there is no device {name!r}", fix=f"Choose auto, cpu, cuda or mps.{did_you_mean(name, DEVICES)}"
        )
    if not there[kind] or (kind == "cuda" and number and int(number) >= torch.cuda.device_count()):
        raise RealignError(f"cannot use the device {name}", "PyTorch does not find it here", "Choose auto or cpu.")
    return torch.device(name)


def choose_dtype(name: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is as stored, but float32 for float16 on a CPU, where it is slow.

    Raises:
        RealignError: there is no such dtype.
    """
    import torch

    if name not in DTYPES:
        raise RealignError(
            f"there is no dtype {name!r}", fix=f"Choose {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}"
        )
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if stored is None or (stored == torch.float16 and device.type == "cpu"):
        return torch.float32
    return stored


def read_config(folder: Path, settings: Settings) -> PretrainedConfig:
    """The configuration in `folder`.

    Raises:
        RealignError: it cannot be read, is of an unknown architecture, needs remote code, or is no causal model's.
    """
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    what = f"cannot open {folder}"
    written = weights.read_json(folder / "config.json")
    kind = written.get("model_type")
    known = kind in CONFIG_MAPPING
    if not known and not (settings.trust_remote_code and "auto_map" in written):
        if "auto_map" in written:
            raise needs_remote_code(folder, "its architecture")
        raise RealignError(what, f"transformers does not know the model type {kind!r}", "A newer transformers may.")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # whatever transformers stumbles over, it is the folder's
        raise RealignError(
            what, f"its config.json cannot be used ({weights.brief(error)})", "Save the checkpoint again."
        ) from error
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind or "", ())
    names = {causal} if isinstance(causal, str) else set(causal)
    own = set(written.get("architectures") or names)
    if known and not own & names:
        raise RealignError(
            what,
            f"it is not a causal language model ({', '.join(sorted(own)) or kind})",
            "realign asks questions and reads answers, so it needs a model that writes text.",
        )
    return config


@dataclass(frozen=True)
class Sound:
    """A folder whose configuration and weight files have been checked: what is left is to load it."""

    folder: Path
    config: PretrainedConfig
    weights: weights.Weights


def check(folder: Path, settings: Settings) -> Sound:
    """Check everything about a full model that can be checked without reading its tensors.

    Raises:
        RealignError: as `read_config` and `weights.check`.
    """
    config = read_config(folder, settings)
    return Sound(folder, config, weights.check(folder, "model", allow_pickle=settings.allow_pickle))


def load(sound: Sound, settings: Settings) -> PreTrainedModel:
    """Load a full model straight into its dtype and device, in evaluation mode.

    Raises:
        RealignError: weights that the model needs are missing or of another shape, or it does not fit in memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # its annotation forgets `output_loading_info`
    folder, config = sound.folder, sound.config
    stored: Any = config.dtype
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, stored, device)
    try:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=None if device.type == "cpu" else device,
            use_safetensors=not sound.weights.pickled,
            weights_only=True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RealignError(
            f"cannot open {folder}",
            f"it does not fit in the memory of {device}",
            "Try --dtype bfloat16 or --device cpu.",
        ) from error
    except Exception as error:  # whatever transformers stumbles over, it is the folder's
        raise _misfit(folder, weights.brief(error)) from error
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        raise _misfit(folder, f"{len(lacking)} tensors are missing, such as {lacking[0]}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _misfit(folder: Path, reason: str) -> RealignError:
    return RealignError(
        f"cannot open {folder}", f"its weights do not fit its config.json ({reason})", "Save the checkpoint again."
    )
