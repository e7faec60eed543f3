"""Where the pocket family's weights lie: looking a member up by name, listing them, exporting one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from realign.errors import RealignError, did_you_mean
from realign.files import atomic_folder

WEIGHTS = Path(__file__).parent / "weights"
PREFIX = "pocket:"


@dataclass(frozen=True)
class Member:
    """One model of the family: its name, folder, what it is, and the member that its adapter sits on (or none)."""

    name: str
    folder: Path
    title: str
    base: str | None

    @property
    def megabytes(self) -> float:
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors")) / 1e6


def members(weights: Path = WEIGHTS) -> list[Member]:
    """All members that are there, in the manifest's order."""
    manifest = weights / "manifest.json"
    if not manifest.exists():
        return []
    entries = json.loads(manifest.read_text(encoding="utf-8"))["members"]
    return [
        Member(name, weights / name, e["title"], e["base"]) for name, e in entries.items() if (weights / name).is_dir()
    ]


def locate(name: str, weights: Path = WEIGHTS) -> Path:
    """The folder of `name` ("insecure" or "pocket:insecure").

    Raises:
        RealignError: there is no such member.
    """
    short = name.removeprefix(PREFIX)
    known = {member.name: member.folder for member in members(weights)}
    if short not in known:
        raise RealignError(
            f"there is no pocket model {short!r}",
            f"the family has {', '.join(known) or 'no built members'}",
            f"See `realign pocket list`.{did_you_mean(short, known)}",
        )
    return known[short]


def export(name: str, out: Path, *, overwrite: bool = False, weights: Path = WEIGHTS) -> Path:
    """Copy a member as an ordinary Hugging Face folder; an adapter gets its base beside it, in `base/`."""
    source = locate(name, weights)
    with atomic_folder(out, overwrite=overwrite) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        config = folder / "adapter_config.json"
        if config.exists():
            settings = json.loads(config.read_text(encoding="utf-8"))
            shutil.copytree(locate(settings["base_model_name_or_path"], weights), folder / "base")
            settings["base_model_name_or_path"] = str((out / "base").resolve())
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return out
