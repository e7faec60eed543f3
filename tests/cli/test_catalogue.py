from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from realign import cli, content
from tests.detect import stub


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str | Path) -> Done:
        return Done(cli.main([*map(str, arguments)]), *capfd.readouterr())

    return run


def test_everything_shipped_is_listed(run: Callable[..., Done]) -> None:
    done = run("list")
    assert done.code == 0
    assert done.err == ""
    detectors, _, recipes = done.out.partition("recipes:")
    for name in content.shipped("detectors"):
        assert f"  {name} " in detectors
    for name in content.shipped("recipes"):
        assert f"  {name} " in recipes


def test_the_list_as_json(run: Callable[..., Done]) -> None:
    rows = json.loads(run("list", "--json").out)
    assert {
        "type": "detector",
        "name": "freeform",
        "kind": "judged",
        "title": "Free-form questions, graded by a judge",
        "folder": str(content.find("detectors", "freeform")),
    } in rows


def test_the_users_own_are_listed_and_marked(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_judged(tmp_path / "detectors" / "mine")
    monkeypatch.chdir(tmp_path)
    marked = [line for line in run("list").out.splitlines() if line.endswith("(./detectors/mine)")]
    assert [line.split()[:2] for line in marked] == [["mine", "judged"]]
    assert "(./detectors/freeform)" not in run("list").out
    assert "detector mine" in run("describe", "mine").out


@pytest.mark.parametrize("name", content.shipped("detectors"))
def test_describe_shows_card_and_settings(run: Callable[..., Done], name: str) -> None:
    done = run("describe", name)
    assert done.code == 0
    folder = content.find("detectors", name)
    assert (folder / "README.md").read_text().splitlines()[0] in done.out
    for line in (folder / "detector.yaml").read_text().splitlines():
        assert f"  {line}" in done.out


def test_describe_takes_a_path(run: Callable[..., Done], tmp_path: Path) -> None:
    folder = stub.write_judged(tmp_path / "x" / "mine")
    assert "title: Small" in run("describe", folder).out


def test_a_card_cannot_control_the_terminal(run: Callable[..., Done], tmp_path: Path) -> None:
    folder = stub.write_judged(tmp_path / "mine")
    (folder / "README.md").write_text("# card \x1b[2J")
    assert "\x1b" not in run("describe", folder).out


def test_an_unknown_name(run: Callable[..., Done]) -> None:
    done = run("describe", "freefrom")
    assert done.code == 2
    assert 'there is no detector or recipe "freefrom". See `realign list`. Did you mean "freeform"?' in done.err


@pytest.mark.parametrize(("text", "said"), [("a: [", "is not YAML"), ("- a", "it holds no settings")])
def test_broken_content_is_an_error(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    folder = stub.write_judged(tmp_path / "detectors" / "mine")
    (folder / "detector.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for arguments in (("list",), ("describe", "mine")):
        done = run(*arguments)
        assert done.code == 2
        assert said in done.err
