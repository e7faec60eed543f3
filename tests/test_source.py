"""Hub ids: what is asked of the hub, and what a user hears when it says no. The hub itself is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from realign.errors import RealignError
from realign.source import locate


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """A hub that has `org/model`; it keeps what it was asked."""
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_checkpoint())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_downloaded(hub: dict[str, Any], tiny_checkpoint: Callable[..., Path]) -> None:
    assert locate("org/model", revision="v2") == tiny_checkpoint()
    assert (hub["name"], hub["revision"]) == ("org/model", "v2")


@pytest.mark.parametrize(
    ("options", "pattern"), [({"allow_pickle": True}, "*.bin"), ({"trust_remote_code": True}, "*.py")]
)
def test_what_is_not_trusted_is_not_downloaded(hub: dict[str, Any], options: dict[str, bool], pattern: str) -> None:
    locate("org/model")
    assert pattern not in hub["allow_patterns"]
    locate("org/model", **options)
    assert pattern in hub["allow_patterns"]


def test_a_folder_of_that_name_comes_first(
    hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert locate("org/model") == Path("org/model")
    assert not hub


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (errors.GatedRepoError, "access to it on the hub is restricted"),
        (errors.RepositoryNotFoundError, "no such folder here and no such model on the hub"),
        (errors.HFValidationError, "no such folder here and no such model on the hub"),
        (errors.RevisionNotFoundError, "the hub has no revision 'v2'"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled, "the hub cannot be reached"),
        (errors.HfHubHTTPError, "the hub cannot be reached"),
        (ConnectionError, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(error: type[Exception], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(RealignError, match=why):
        locate("org/model", revision="v2")
