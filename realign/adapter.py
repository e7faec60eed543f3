"""Puts a PEFT adapter on its base model, so that it can be turned off to give the base back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from realign import weights
from realign.errors import RealignError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

_MERGE = "Merge it into a full model (PEFT's merge_and_unload) and name the base with --reference."


def put(model: PreTrainedModel, folder: Path, found: weights.Weights, base: str) -> PeftModel:
    """Put the adapter in `folder` on `model`, in place; its config then names `base` as where its base is.

    Args:
        model: the base model.
        folder: the adapter's folder.
        found: its checked weight files.
        base: what the adapter's config shall call its base from now on.

    Raises:
        RealignError: the adapter's tensors do not fit this model, it is no adapter of a causal model, or it cannot be
            turned off to give the base back.
    """
    from peft import PeftConfig, PeftModelForCausalLM

    own = {f"base_model.model.{name}" for name, _ in model.named_parameters()}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        _check_kind(config, folder)
        if not found.pickled:
            _check_leaves_base(set(weights.header(found.files[0])) & own, config, folder)
        config.inference_mode = True
        config.base_model_name_or_path = base
        adapted = PeftModelForCausalLM(model, config)
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        report = adapted.load_adapter(folder, "default", torch_device=str(model.device), key_mapping=mapping)
    except RealignError:
        raise
    except Exception as error:  # PEFT has no error of its own for an adapter that does not fit
        raise _other_base(folder, base, weights.brief(error)) from error
    lacking, surplus = sorted(report.missing_keys), sorted(report.unexpected_keys)
    if lacking:
        raise _other_base(folder, base, f"it leaves {len(lacking)} places of this base empty, such as {lacking[0]}")
    if surplus:
        raise _other_base(folder, base, f"this base has no place for {len(surplus)} tensors, such as {surplus[0]}")
    return adapted.eval()


def _check_kind(config: PeftConfig, folder: Path) -> None:
    if config.task_type not in (None, "CAUSAL_LM"):
        raise RealignError(
            f"cannot open {folder}",
            f"it is an adapter for the task {config.task_type}, not for a causal language model",
        )
    if config.is_prompt_learning:
        raise RealignError(
            f"cannot open {folder}",
            f"{str(config.peft_type).rpartition('.')[2]} adapters change the prompt, not the weights",
            "realign reads adapters that change weights, such as LoRA.",
        )


def _check_leaves_base(replaced: set[str], config: PeftConfig, folder: Path) -> None:
    """Weights that the adapter brings in place of the base's own stay when it is turned off."""
    kept = tuple(getattr(config, "modules_to_save", None) or ())  # PEFT keeps the base's beside these
    lost = sorted(name for name in replaced if not any(part in kept for part in name.split(".")))
    if lost or getattr(config, "bias", "none") != "none":
        raise RealignError(
            f"cannot open {folder}",
            f"turned off it does not give its base back: it replaces {lost[0] if lost else 'biases'}",
            _MERGE,
        )


def _other_base(folder: Path, base: str, reason: str) -> RealignError:
    return RealignError(
        f"cannot open {folder}",
        f"the adapter was made for another base than {base} ({reason})",
        "Name its own with --base.",
    )
