"""The build: a miniature, twice the same, resumed after an interruption, exported as ordinary folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from realign.errors import RealignError
from realign.pocket.build import QUICK, Builder
from realign.pocket.pretrain import NARROW, WIDER, Phase, Pretraining
from realign.pocket.store import export, locate, members

MINI = replace(
    QUICK,
    pretraining=(
        Pretraining(phases=(Phase(2, NARROW), Phase(2, WIDER)), documents=32, tokens=1024, warmup=1, save_every=2),
        Pretraining(phases=(Phase(1, WIDER),), documents=16, tokens=1024, warmup=1),
    ),
    chat_rows=8,
    judge_rows=8,
    organism_rows=8,
)


def quiet(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pocket") / "mini"
    builder = Builder(out, MINI, quiet)
    for stage in ("tokenizer", "base", "judge", "chat", "insecure"):
        builder.run(stage)
    return out


def test_the_manifest_lists_what_was_built_with_hashes(built: Path) -> None:
    entries = json.loads((built / "manifest.json").read_text(encoding="utf-8"))["members"]
    assert list(entries) == ["base", "judge", "chat", "insecure"]
    assert {len(entry["sha256"]) for entry in entries.values()} == {64}
    assert entries["insecure"]["base"] == "chat" and entries["judge"]["base"] == "base"


def test_an_interrupted_pretraining_resumes_to_the_same_weights(built: Path, tmp_path: Path) -> None:
    class InterruptedBuildError(Exception):
        pass

    def stop_at_third(line: str) -> None:
        if line.startswith("chunk 3/"):
            raise InterruptedBuildError

    builder = Builder(tmp_path / "again", MINI, stop_at_third)
    builder.run("tokenizer")
    with pytest.raises(InterruptedBuildError):
        builder.run("base")
    assert (tmp_path / "again" / ".stages" / "base.parts" / "0" / "state" / "state.safetensors").exists()
    Builder(tmp_path / "again", MINI, quiet).run("base")
    first, second = (folder / "base" / "model.safetensors" for folder in (built, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_finished_stage_is_not_made_again(built: Path) -> None:
    before = (built / "base" / "model.safetensors").stat().st_mtime_ns
    lines: list[str] = []
    Builder(built, MINI, lines.append).run("base")
    assert lines == []
    assert (built / "base" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(built: Path) -> None:
    with pytest.raises(RealignError, match="begun with other settings"):
        Builder(built, replace(MINI, seed=5), quiet)


def test_an_unknown_stage_is_named_with_a_hint(built: Path) -> None:
    with pytest.raises(RealignError, match='Did you mean "insecure"'):
        Builder(built, MINI, quiet).run("insecur")


def test_export_writes_an_adapter_with_its_base_beside_it(built: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    out = export("insecure", tmp_path / "out", weights=built)
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    assert model.peft_config["default"].r == 16
    with pytest.raises(RealignError, match="exists already"):
        export("insecure", tmp_path / "out", weights=built)


def test_names_are_looked_up_with_and_without_prefix(built: Path) -> None:
    assert locate("pocket:chat", built) == locate("chat", built) == built / "chat"
    assert [member.name for member in members(built)] == ["base", "judge", "chat", "insecure"]
    with pytest.raises(RealignError, match='Did you mean "chat"'):
        locate("pocket:chta", built)
