"""Fixtures that all tests share: no network, caches of their own, tiny checkpoints made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests import tiny


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache folder of its own and none of the user's settings."""
    for name in [name for name in os.environ if name.startswith("REALIGN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.make` with its folder chosen and each checkpoint made once; do not change what it returns."""
    made: dict[str, Path] = {}

    def checkpoint(architecture: str = "llama", **options: object) -> Path:
        key = repr((architecture, sorted(options.items())))
        if key not in made:
            made[key] = tiny.make(architecture, tmp_path_factory.mktemp(architecture), **options)  # type: ignore[arg-type]
        return made[key]

    return checkpoint


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """A LoRA adapter on the `tiny_checkpoint` of an architecture, made once; do not change what it returns."""
    made: dict[str, Path] = {}

    def adapter(architecture: str = "llama") -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-adapter")
            made[architecture] = tiny.make_adapter(tiny_checkpoint(architecture), folder)
        return made[architecture]

    return adapter
