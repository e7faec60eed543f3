from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from realign import cli
from realign.judging import Judge
from tests.detect import stub
from tests.detect.stub import StubJudge

SHORT = ("--max-new-tokens", "3")


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()  # what making the checkpoint printed
        code = cli.main(["detect", *map(str, arguments)])
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def judged(tmp_path: Path) -> str:
    return str(stub.write_judged(tmp_path / "small"))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], None]:
    """Makes `--judge auto` a judge of the test's."""

    def use(chosen: Judge) -> None:
        monkeypatch.setattr("realign.detect.suite.open_judge", lambda name, checkpoint: chosen)

    return use


@pytest.mark.parametrize(
    ("rate", "code", "word"), [(0.6, 1, "misaligned"), (0.0, 0, "clear"), (0.05, 3, "inconclusive")]
)
def test_the_exit_code_is_the_verdict(
    run: Callable[..., Done], judged: str, judge: Callable[[Judge], None], tiny_checkpoint: Callable[..., Path],
    rate: float, code: int, word: str,
) -> None:  # fmt: skip
    judge(StubJudge(stub.always(rate)))
    done = run(tiny_checkpoint(), "--only", judged, "--tolerance", "0.05", "--budget", "120", *SHORT)
    assert done.code == code
    assert f"\n{word}: " in done.out
    assert done.err == ""


def test_json_is_all_there_is_on_stdout(
    run: Callable[..., Done], judged: str, judge: Callable[[Judge], None], tiny_adapter: Callable[..., Path]
) -> None:
    judge(StubJudge(stub.always(0.0)))
    done = run(tiny_adapter(), "--only", judged, "--tolerance", "0.05", "--seed", "7", "--json", *SHORT)
    content = json.loads(done.out)
    assert done.code == content["verdict"]["exit_code"] == 0
    assert content["settings"]["seed"] == 7
    assert content["settings"]["sampling"]["max_new_tokens"] == 3


def test_a_run_folder_keeps_everything_and_refuses_other_settings(
    run: Callable[..., Done], judged: str, judge: Callable[[Judge], None], tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    judge(StubJudge(stub.always(0.6)))
    arguments = (tiny_checkpoint(), "--only", judged, "-o", tmp_path / "run", *SHORT)
    assert run(*arguments).code == 1
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "report.json", "answers.jsonl", "judgements.jsonl"} <= kept
    again = run(*arguments)
    assert again.code == 1
    other = run(*arguments, "--seed", "1")
    assert other.code == 2
    assert "it was made with another seed" in other.err
    assert run(*arguments, "--seed", "1", "--overwrite").code == 1


def test_a_random_model_with_the_shipped_detectors_is_inconclusive(
    run: Callable[..., Done], tiny_checkpoint: Callable[..., Path]
) -> None:
    done = run(tiny_checkpoint(), *SHORT)
    assert done.code == 3
    assert "persona_probe" in done.out
    assert "inconclusive: not evaluated, there is no judge" in done.out
    assert "--judge" in done.out
    assert done.err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/checkpoint"], "no/such/checkpoint"),
        (["x", "--only", "freefrom"], 'Did you mean "freeform"'),
        (["x", "--suite", "defualt"], 'Did you mean "default"'),
        (["x", "--context", "plian"], 'Did you mean "plain"'),
        (["x", "--tolerance", "5"], "cannot use 5.0 as the tolerance"),
        (["x", "--alpha", "0"], "cannot use 0.0 as the alpha"),
        (["x", "--budget", "0"], "cannot use 0 as the budget"),
        (["x", "--max-new-tokens", "0"], "max_new_tokens must be above 0"),
        (["x", "--tolerance", "low"], "'--tolerance'"),
        ([], "Missing argument 'CHECKPOINT'"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_2(run: Callable[..., Done], arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err
    assert "Traceback" not in done.err


def test_settings_and_the_run_folder_are_checked_before_the_checkpoint_is_opened(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("realign.checkpoint.open", opened)
    (tmp_path / "thesis.tex").write_text("mine")
    assert "it holds something else" in run("x", "-o", tmp_path).err
    assert "tolerance" in run("x", "--tolerance", "7").err


def test_options_reach_the_checkpoint(
    run: Callable[..., Done], judged: str, judge: Callable[[Judge], None], tiny_checkpoint: Callable[..., Path],
    tiny_adapter: Callable[..., Path],
) -> None:  # fmt: skip
    judge(StubJudge(stub.always(0.6)))
    reference = tiny_checkpoint(seed=1)
    arguments = (tiny_checkpoint(), "--only", judged, "--budget", "12", "--json", *SHORT)
    assert json.loads(run(*arguments, "--reference", reference).out)["reference"]["source"] == str(reference)
    assert "it is a full model, not an adapter" in run(*arguments, "--base", reference).err
    based = run(tiny_adapter(), "--base", tiny_checkpoint(), "--only", judged, "--budget", "12", "--json", *SHORT)
    assert Path(json.loads(based.out)["reference"]["source"]) == tiny_checkpoint().resolve()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, realign.cli; realign.cli.main(['detect', '--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--tolerance" in done.stdout
    assert not set(eval(done.stderr)) & {"torch", "transformers", "peft", "numpy", "scipy", "sklearn", "rich", "yaml"}
