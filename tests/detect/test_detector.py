from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from realign.detect import detector
from realign.detect.detector import Detector, Spec, kinds, load
from realign.detect.judged import Judged
from realign.errors import RealignError
from tests.detect import stub


def test_the_kinds() -> None:
    assert set(kinds()) == {"judged", "latents", "probe", "shift"}
    assert kinds()["judged"] is Judged


def test_two_kinds_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "_KINDS", dict(kinds()))
    with pytest.raises(TypeError, match='Judged and Another are both of the kind "judged"'):

        class Another(Detector[Spec], kind="judged"):  # type: ignore[misc]
            pass


def test_a_detector_is_loaded_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stub.write_judged(tmp_path / "detectors" / "mine")
    assert load(str(folder)).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert load("mine").spec.title == "Small"
    assert load("freeform").spec.title != "Small"


def test_the_users_detector_goes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.write_judged(tmp_path / "detectors" / "freeform")
    monkeypatch.chdir(tmp_path)
    assert load("freeform").spec.title == "Small"


def test_the_hash_names_settings_and_content_not_the_place(tmp_path: Path) -> None:
    folder = stub.write_judged(tmp_path / "one")
    before = load(str(folder)).hash
    shutil.copytree(folder, tmp_path / "two")
    assert load(str(tmp_path / "two")).hash == before
    (folder / "README.md").write_text("a card decides nothing")
    assert load(str(folder)).hash == before
    (folder / "rubric.yaml").write_text(stub.RUBRIC.replace("Grade", "Rate"))
    assert load(str(folder)).hash != before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: judged", "kind: judgde", 'there is no kind "judgde".*Did you mean "judged"'),
        ("kind: judged\n", "", "it names no kind.*Kinds: judged, latents, probe, shift"),
        ("kind: judged", "kind: [judged]", "there is no kind"),
        ("rubric:", "rubrik:", 'rubrik: Extra inputs.*Did you mean "rubric"|rubric: Field required'),
        ("cost: sampling", "cost: gold", "cost: Input should be"),
        ("title: Small", "title: ''", "title: "),
        ("title: Small", "title: Small\ncontexts: []", "contexts: "),
        ("title: Small", "title: Small\ncontexts: [plian]", 'Did you mean "plain"'),
        ("title: Small", "title: [", "is not YAML"),
        ("rubric.yaml", "missing.yaml", "cannot read the rubric"),
        ("questions.yaml", "missing.yaml", "cannot read the question set"),
        ("audit.jsonl", "missing.jsonl", "cannot read"),
    ],
)
def test_what_is_wrong_with_a_detector_is_said_when_it_is_loaded(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = stub.write_judged(tmp_path / "mine")
    path = folder / "detector.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RealignError, match=said):
        load(str(folder))


def test_a_folder_without_a_detector(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match="cannot read the detector"):
        load(str(tmp_path))


def test_an_unknown_name() -> None:
    with pytest.raises(RealignError, match=r"no detector 'freefrom'.*Did you mean \"freeform\""):
        load("freefrom")


def test_a_misspelt_key_gets_a_hint(tmp_path: Path) -> None:
    folder = stub.write_judged(tmp_path / "mine")
    with (folder / "detector.yaml").open("a") as file:
        file.write("context: [plain]\n")
    with pytest.raises(RealignError, match=r'context: Extra inputs.*Did you mean "contexts"'):
        load(str(folder))
