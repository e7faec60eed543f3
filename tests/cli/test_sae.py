from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from realign import cli
from tests import tiny


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["sae", "train", *arguments])
    out, err = capfd.readouterr()
    return code, out, " ".join(err.split())


@pytest.fixture
def arguments(tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = [f"{number} {text.splitlines()[0]}" for number in range(10) for text in tiny.TEXT]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    small = "--texts texts.txt -o sae --latents 64 --active 8 --batch 64 --rate 0.003"
    return [str(tiny_checkpoint()), *small.split()]


def test_it_trains_and_says_how_good_the_sae_is(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *arguments, "--layer", "1", "--tokens", "6400")
    assert code == 0
    assert "layer 1, 64 latents, " in out
    assert "explained variance on texts held out: 0." in out
    assert out.endswith("saved to sae\n")
    assert Path("sae/sae_weights.safetensors").is_file()


def test_json_is_all_that_goes_to_stdout(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, *arguments, "--layer", "0", "--tokens", "640", "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["path"], result["layer"], result["latents"], result["tokens"]) == ("sae", 0, 64, 640)
    assert result["explained_variance"] <= 1


def test_an_sae_that_no_detector_will_believe(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, *arguments, "--layer", "1", "--tokens", "64")
    assert code == 0
    assert "Detectors will not believe it: they want 0.6." in err


def test_what_is_wrong_is_said_and_nothing_is_written(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--layer", "2"], "cannot read layer 2: the model has the layers 0 to 1"),
        (["--layer", "1", "--architecture", "gated"], "there is no architecture gated"),
        (["--layer", "1", "--texts", "none.txt"], "cannot read none.txt"),
        ([], "Missing option '--layer'"),
    ):
        code, out, err = run(capfd, *arguments, *more)
        assert (code, out) == (2, "")
        assert said in err
        assert not Path("sae").exists()


def test_a_folder_in_use_is_refused_before_the_checkpoint_is_opened(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("sae").mkdir()
    Path("sae/mine").write_text("mine")
    code, _, err = run(capfd, "no-such-checkpoint", *arguments[1:], "--layer", "1")
    assert code == 2
    assert "cannot write to sae: it exists already" in err
