from __future__ import annotations

from pathlib import Path

import pytest

from realign import content
from realign.errors import RealignError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships the detectors `freeform` and `probe`; the working folder is empty."""
    package = tmp_path / "site" / "realign"
    for name in ("freeform", "probe"):
        folder = package / "_content" / "detectors" / name
        folder.mkdir(parents=True)
        (folder / "detector.yaml").write_text("kind: judged\n")
    monkeypatch.setattr(content, "_PACKAGE", package)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return package / "_content" / "detectors"


def own(name: str, spec: str = "detector.yaml") -> Path:
    folder = Path("detectors") / name
    folder.mkdir(parents=True)
    (folder / spec).write_text("kind: judged\n")
    return folder


def test_a_shipped_name_is_found(shipped: Path) -> None:
    assert content.find("detectors", "freeform") == shipped / "freeform"


def test_the_users_folder_comes_first(shipped: Path) -> None:
    folder = own("freeform")
    assert content.find("detectors", "freeform") == folder


def test_a_path_to_the_folder_or_its_spec_works(shipped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "detector.yaml").write_text("kind: judged\n")
    assert content.find("detectors", str(folder)) == folder
    assert content.find("detectors", str(folder / "detector.yaml")) == folder


def test_a_checkout_ships_the_folders_beside_the_package(shipped: Path) -> None:
    checkout = shipped.parents[2]
    for folder in shipped.iterdir():
        target = checkout / "detectors" / folder.name
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    shipped.rmdir()
    assert content.find("detectors", "probe") == checkout / "detectors" / "probe"


def test_names_are_the_users_and_the_shipped_ones(shipped: Path) -> None:
    own("mine")
    own("unfinished", spec="notes.txt")
    assert content.shipped("detectors") == ["freeform", "probe"]
    assert content.names("detectors") == ["freeform", "mine", "probe"]


def test_an_unknown_name_is_refused_with_a_hint(shipped: Path) -> None:
    with pytest.raises(
        RealignError, match=r"no detector 'freefrom'.*freeform, probe.*Did you mean \"freeform\""
    ) as refused:
        content.find("detectors", "freefrom")
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", ["./nowhere", "a/b", "/nowhere/at/all"])
def test_an_unknown_path_is_refused(shipped: Path, name: str) -> None:
    with pytest.raises(RealignError, match="no folder"):
        content.find("detectors", name)


def test_an_empty_name_is_refused(shipped: Path) -> None:
    own("mine")
    with pytest.raises(RealignError, match="no detector ''"):
        content.find("detectors", "")
