from __future__ import annotations

from pathlib import Path

import pytest

from realign.detect import run
from realign.errors import RealignError

CONFIG = {"checkpoint": "sha256:1", "seed": 0, "contexts": None, "detectors": {"freeform": "sha256:2"}}


def test_a_new_folder_becomes_a_run_and_stays_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    run.claim(folder, CONFIG)
    (folder / "answers.jsonl").write_text("kept")
    run.claim(folder, CONFIG)
    assert (folder / "answers.jsonl").read_text() == "kept"


def test_an_empty_folder_becomes_a_run(tmp_path: Path) -> None:
    run.claim(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").exists()


def test_a_run_of_other_settings_is_refused_and_the_settings_named(tmp_path: Path) -> None:
    run.claim(tmp_path / "run", CONFIG)
    with pytest.raises(RealignError, match=r"cannot resume.*another seed and another tolerance.*--overwrite"):
        run.claim(tmp_path / "run", CONFIG | {"seed": 1, "tolerance": 0.05})


def test_overwriting_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run.claim(folder, CONFIG)
    (folder / "answers.jsonl").write_text("old")
    run.claim(folder, CONFIG | {"seed": 1}, overwrite=True)
    assert not (folder / "answers.jsonl").exists()
    run.claim(folder, CONFIG | {"seed": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RealignError, match="it holds something else"):
        run.claim(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RealignError, match="it is a file"):
        run.check(tmp_path / "run", overwrite=overwrite)


def test_the_working_folder_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.claim(tmp_path / "run", CONFIG)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(RealignError, match="working or home folder"):
        run.claim(tmp_path / "run", CONFIG, overwrite=True)


@pytest.mark.parametrize("damaged", ["a: [", "just text", "", "- 1"])
def test_a_damaged_config_is_an_error(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "config.yaml").write_text(damaged)
    with pytest.raises(RealignError, match=r"config\.yaml is damaged"):
        run.claim(tmp_path, CONFIG)
