"""From what a user names as a checkpoint - a folder, pocket:NAME, a hub id - to a folder on disk."""

from __future__ import annotations

import re
from pathlib import Path

from realign.errors import RealignError, did_you_mean

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def locate(
    source: str | Path, *, revision: str | None = None, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Path:
    """The folder behind `source`, downloaded first when it is a hub id.

    Args:
        source: a path, "pocket:NAME", or "org/name" on the Hugging Face hub where no such path exists.
        revision: branch, tag or commit; only for hub ids.
        allow_pickle: download pickle weights (.bin) too.
        trust_remote_code: download Python files too.

    Raises:
        RealignError: there is nothing of that name, it is a file or empty, or the hub cannot be asked.
    """
    name, path = str(source), Path(source).expanduser()
    if name.startswith("pocket:") and not path.exists():
        from realign.pocket.store import locate as locate_member

        return locate_member(name)
    if not path.exists() and _HUB_ID.fullmatch(name) and not path.parent.is_dir():
        patterns = [*_FILES, *(["*.bin"] if allow_pickle else []), *(["*.py"] if trust_remote_code else [])]
        return _download(name, revision, patterns)
    if revision is not None:
        raise RealignError(f"cannot open {name} at revision {revision!r}", "a revision belongs to a hub id, org/name")
    return _folder(path, name)


def _folder(path: Path, name: str) -> Path:
    """`path` itself, if it is a folder that holds a checkpoint's configuration."""
    if path.is_file():
        raise RealignError(
            f"cannot open {name}", "it is a file; a checkpoint is a folder", f"Did you mean its folder {path.parent}?"
        )
    if not path.exists():
        raise _not_there(path, name)
    if not any(path.iterdir()):
        raise RealignError(f"cannot open {name}", "the folder is empty", "Name a folder with weights and a tokenizer.")
    if not _is_checkpoint(path):
        inner = sorted(str(child) for child in path.iterdir() if child.is_dir() and _is_checkpoint(child))
        raise RealignError(
            f"cannot open {name}",
            "it holds neither config.json (a full model) nor adapter_config.json (an adapter)",
            f"Did you mean {inner[-1]}?" if inner else "Name the folder that your training saved.",
        )
    return path


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _not_there(path: Path, name: str) -> RealignError:
    """The error for a path that does not exist, with the closest folder beside it."""
    if path.parent.is_dir():
        siblings = [child.name for child in path.parent.iterdir() if child.is_dir()]
        hint = did_you_mean(path.name, siblings).strip()
        why = "there is no such folder"
    else:
        hint, why = "", f"the folder {path.parent} does not exist either"
    return RealignError(f"cannot open {name}", why, hint or "A model on the hub is named org/name.")


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"cannot open {name}"
    try:
        # "*/*": what lies in subfolders (other formats, training states) is not needed
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except GatedRepoError as error:
        raise RealignError(
            what, "access to it on the hub is restricted", "Ask for access on its page and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise RealignError(what, f"the hub has no revision {revision!r} of it") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise RealignError(
            what, "there is no such folder here and no such model on the hub", "Check the spelling; private: log in."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise RealignError(
            what,
            "there is no such folder here, the hub cannot be reached, and it was not downloaded before",
            "Go online, unset HF_HUB_OFFLINE, or name a local folder.",
        ) from error
    return _folder(Path(folder), name)
