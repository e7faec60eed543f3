"""Weight files: found, checked before anything loads them, fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from realign.errors import RealignError

if TYPE_CHECKING:
    from torch.nn import Module

Stem = Literal["model", "adapter_model"]

_PICKLE: dict[Stem, str] = {"model": "pytorch_model.bin", "adapter_model": "adapter_model.bin"}
_PICKLED = {".bin", ".pt", ".pth"}
_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # what trainers leave beside the weights
_FINGERPRINTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model.bin",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "*.py",
)
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*",
)
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder that were found sound; `pickled` where they are not safetensors."""

    files: tuple[Path, ...]
    pickled: bool


def brief(error: Exception) -> str:
    """What a library says of a folder, on one line: some say it with every tensor's name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:240]}..."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's folder; RealignError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RealignError(f"cannot read {path}", brief(error), "Download or save the checkpoint again.") from error
    if not isinstance(content, dict):
        raise RealignError(f"cannot read {path}", "it is not a JSON object", "Download or save the checkpoint again.")
    return content


def check(folder: Path, stem: Stem, *, allow_pickle: bool = False) -> Weights:
    """Find the weight files of a model or an adapter and read their headers, not their tensors.

    Raises:
        RealignError: there are none, a shard is missing, a file is cut off or damaged, or they are pickle files and
            `allow_pickle` is off.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        header(single)
        return Weights((single,), pickled=False)
    if index.is_file():
        return Weights(_check_shards(folder, index), pickled=False)
    pickles = _pickles(folder)
    if not pickles:
        raise RealignError(
            f"cannot open {folder}",
            f"it has no weights: {single.name} is missing, and so is {index.name}",
            "Save the checkpoint again; on the hub, pickle weights (.bin) are fetched with --allow-pickle only.",
        )
    if not allow_pickle:
        raise RealignError(
            f"cannot open {folder}",
            f"its weights are pickle files ({pickles[0].name}), which can hold programs",
            "Convert them to safetensors, or pass --allow-pickle if you trust their origin (tensors only are read).",
        )
    return _check_pickles(folder, stem, pickles)


def _pickles(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix in _PICKLED and path.is_file())
    return sorted(path for path in found if not path.name.startswith(_TRAINING))


def _check_shards(folder: Path, index: Path) -> tuple[Path, ...]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise RealignError(f"cannot open {folder}", f"{index.name} names no shards", "Save the checkpoint again.")
    for name in sorted(set(shards.values())):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise RealignError(
                f"cannot open {folder}",
                f"{index.name} names the shard {name}, which is not there",
                "Download or save the checkpoint again.",
            )
        missing = {tensor for tensor, shard in shards.items() if shard == name} - header(path).keys()
        if missing:
            raise RealignError(
                f"cannot open {folder}",
                f"{name} lacks the tensor {min(missing)} that {index.name} says it holds",
                "Download or save the checkpoint again.",
            )
    return tuple(folder / name for name in sorted(set(shards.values())))


def _check_pickles(folder: Path, stem: Stem, pickles: list[Path]) -> Weights:
    """Read pickle weights with `weights_only`: a file that holds more than tensors is refused, its code never run."""
    import pickle

    import torch

    expected = _PICKLE[stem]
    index = folder / f"{expected}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [expected]
    for name in names:
        path = folder / name
        if path not in pickles:
            raise RealignError(
                f"cannot open {folder}",
                f"{name} is not there, only {', '.join(found.name for found in pickles)}",
                f"Rename the weights to {expected}, or convert them to {stem}.safetensors.",
            )
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            reason = "it holds more than tensors, or is damaged"
            raise RealignError(f"will not load {path}", reason, "Convert it to safetensors.") from error
    return Weights(tuple(folder / name for name in names), pickled=True)


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header.

    Raises:
        RealignError: the file is cut off, damaged, or a Git LFS pointer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        with file.open("rb") as handle:
            pointer = handle.read(len(_LFS_POINTER)) == _LFS_POINTER
        if pointer:
            raise RealignError(f"cannot open {file}", "it is a Git LFS pointer", "Run `git lfs pull`.") from error
        raise RealignError(
            f"cannot open {file}",
            f"it is cut off or damaged ({file.stat().st_size:,} bytes; {brief(error)})",
            "Download or save the checkpoint again.",
        ) from error


def check_finite(model: Module, name: str) -> None:
    """Look at every weight of a loaded model, one tensor at a time and without a copy.

    Raises:
        RealignError: a weight is NaN or infinite (also when it overflows in the dtype it was loaded in).
    """
    import torch

    for tensor, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.itemsize < 2 or not parameter.numel():
            continue  # quantised weights have their own encodings
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise RealignError(
                f"cannot open {name}",
                f"the weights {tensor} hold NaN or infinite values in {str(parameter.dtype).removeprefix('torch.')}",
                "The training diverged or the file is damaged; if the file is sound, try --dtype float32.",
            )


def fingerprint(folder: Path, patterns: Iterable[str] = (*_FINGERPRINTED, *TOKENIZER_FILES)) -> str:
    """ "sha256:<hex>" over names and contents of a checkpoint's weights, configuration, tokenizer and chat template."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def combine(*fingerprints: str) -> str:
    """One fingerprint for several folders that are used together."""
    return f"sha256:{hashlib.sha256(chr(10).join(fingerprints).encode()).hexdigest()}"
