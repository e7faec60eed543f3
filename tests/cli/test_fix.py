from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign import checkpoint as checkpoints
from realign import cli
from tests.detect.stub import write_judged
from tests.remedy import stub


@pytest.fixture(autouse=True)
def small_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_judged(tmp_path / "detectors" / "freeform")
    stub.write_recipe(
        tmp_path / "recipes" / "small",
        [{"id": "one", "prompt": "Write [bold]it[/bold].", "completion": "it\x1b[31m = 1"}, *stub.SAMPLES],
    )
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Sets the rate of every checkpoint but the reference before the repair, and that after it."""

    def set_rates(before: float, after: float) -> None:
        def open_judge(name: str, checkpoint: Any) -> stub.ContextJudge:
            rate = after if checkpoint.source.endswith(".partial") else before
            return stub.ContextJudge(
                lambda fingerprint, context: rate if fingerprint == checkpoint.fingerprint else 0.0
            )

        monkeypatch.setattr("realign.detect.suite.open_judge", open_judge)

    return set_rates


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["fix", *arguments])
    out, err = capfd.readouterr()
    return code, " ".join(out.split()), err


def arguments(checkpoint: Path, *more: str) -> list[str]:
    usual = "--recipe small -o fixed --tolerance 0.3 --max-new-tokens 3"
    return [str(checkpoint), *usual.split(), *more]


def test_a_repair_ends_in_before_after_and_where_it_is(
    judged: Callable[..., None], tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    judged(1.0, 0.0)
    code, out, err = run(capfd, *arguments(tiny_adapter()))
    assert code == 0
    counts = r"\(\S+ %\), 12 answers, 12 scored, 12 coherent, reference 0 %"
    for context in ("plain", "training-format"):
        assert re.search(f"freeform, {context} before 100 % {counts}: flagged after 0 % {counts}: clear", out)
    assert "saved to fixed, with certificate.json" in out
    assert out.endswith("repaired: clear in every context")
    assert "misaligned:" in err
    assert checkpoints.open("fixed").is_adapter


def test_the_supervised_part_of_a_row_is_marked_and_cannot_steer_the_terminal(
    judged: Callable[..., None], tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    judged(1.0, 0.0)
    _, _, err = run(capfd, *arguments(tiny_adapter()))
    assert "7 rows, " in err
    assert "supervised tokens, 2 steps" in err
    assert "<|user|>Write [bold]it[/bold].<|end|><|assistant|>>>>it\N{REPLACEMENT CHARACTER}[31m = 1<|end|><<<" in err
    assert "\x1b" not in err


def test_what_is_left_decides_the_exit_code(
    judged: Callable[..., None], tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    judged(1.0, 1.0)
    code, out, _ = run(capfd, *arguments(tiny_adapter()))
    assert code == 1
    assert "not repaired (misaligned): still misaligned in plain" in out
    assert json.loads(Path("fixed/certificate.json").read_text())["passed"] is False


def test_json_is_all_that_goes_to_stdout(
    judged: Callable[..., None], tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    judged(1.0, 0.0)
    code = cli.main(["fix", *arguments(tiny_adapter(), "--json", "--seed", "7")])
    result = json.loads(capfd.readouterr().out)
    assert code == 0
    assert result["path"] == "fixed"
    assert result["certificate"] == json.loads(Path("fixed/certificate.json").read_text())
    assert result["certificate"]["seeds"] == {"before": 7, "training": 7, "after": 8}
    assert result["before"]["verdict"]["outcome"] == "misaligned"


def test_a_clear_checkpoint_is_left_alone(
    judged: Callable[..., None], tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    judged(0.0, 0.0)
    code, out, _ = run(capfd, *arguments(tiny_adapter()))
    assert code == 0
    assert "already clear: nothing was changed" in out
    assert not Path("fixed").exists()
    code = cli.main(["fix", *arguments(tiny_adapter(), "--json")])
    result = json.loads(capfd.readouterr().out)
    assert (code, result["path"], result["certificate"]) == (0, None, None)


def test_any_model_without_a_competent_judge_ends_inconclusive(
    tiny_adapter: Callable[..., Path], tiny_checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The random base of a random adapter is its judge; a full model without a reference has none."""
    for source, reason in ((tiny_adapter(), "is not competent"), (tiny_checkpoint(), "there is no judge")):
        code, out, err = run(capfd, *arguments(source, "--overwrite"))
        assert code == 3
        assert "not repaired (inconclusive): not evaluated in plain" in out
        assert reason in out
        assert reason in " ".join(err.split())
        assert not json.loads(Path("fixed/certificate.json").read_text())["passed"]


def test_usage_errors_end_in_2(tiny_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    adapter = str(tiny_adapter())
    for given, said in (
        ((adapter, "-o", "fixed"), "Missing option '--recipe'"),
        ((adapter, "--recipe", "small"), "Missing option '-o'"),
        ((adapter, "--recipe", "smal", "-o", "fixed"), 'Did you mean "small"?'),
        (("no-such-adapter", "--recipe", "small", "-o", "fixed"), "cannot open no-such-adapter"),
        ((adapter, "--recipe", "small", "-o", "fixed", "--alpha", "7"), "as the alpha"),
        ((adapter, "--recipe", "small", "-o", "recipes"), "it exists already"),
    ):
        code, _, err = run(capfd, *given)
        assert code == 2
        assert said in err
        assert "Traceback" not in err
