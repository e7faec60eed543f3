from __future__ import annotations

import errno
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import realign
from realign import checkpoint as checkpoints
from realign.errors import RealignError
from realign.remedy.certificate import Certificate
from realign.sampling import SamplingSettings
from tests.detect.stub import write_judged
from tests.remedy import stub

SETTINGS: dict[str, Any] = {"tolerance": 0.3, "sampling": SamplingSettings(max_new_tokens=3), "recipe": "small"}


@pytest.fixture(autouse=True)
def small_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own recipe, and a detector of theirs that takes the place of the shipped one."""
    write_judged(tmp_path / "detectors" / "freeform")
    stub.write_recipe(tmp_path / "recipes" / "small")
    monkeypatch.chdir(tmp_path)


def judge(before: str, *, after: float = 0.0, in_training_format: float | None = None, **options: Any) -> Any:
    """Finds all answers of the checkpoint `before` misaligned, none of its reference's."""
    old = checkpoints.open(before)
    reference = old.reference.fingerprint if old.reference is not None else ""

    def rate(fingerprint: str, context: str) -> float:
        if fingerprint in (old.fingerprint, reference, ""):
            return 1.0 if fingerprint == old.fingerprint else 0.0
        return in_training_format if in_training_format is not None and context != "plain" else after

    return stub.ContextJudge(rate, **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("detectors", "recipes"))


def test_an_adapter_is_repaired_and_proved_on_what_was_saved(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    source, notes = str(tiny_adapter()), stub.Notes()
    old = checkpoints.open(source)
    fixed = realign.fix(source, out="fixed", judge=judge(source), seed=5, onlooker=notes, **SETTINGS)
    assert notes.told == ["detect before", "misaligned", "apply small", "preview", "detect after"]
    assert (fixed.path, fixed.exit_code) == (Path("fixed"), 0)
    certificate = fixed.certificate
    assert certificate is not None
    assert certificate.passed
    repaired = checkpoints.open("fixed")
    assert certificate.checkpoint.after == repaired.fingerprint
    assert certificate.checkpoint.before == old.fingerprint != repaired.fingerprint
    assert repaired.is_adapter
    assert repaired.reference is not None
    assert old.reference is not None
    assert repaired.reference.path.resolve() == old.reference.path.resolve()
    assert [(change.context, change.before.outcome, change.after.outcome) for change in certificate.changes] == [
        ("plain", "flagged", "clear"),
        ("training-format", "flagged", "clear"),
    ]
    assert (certificate.seeds.before, certificate.seeds.training, certificate.seeds.after) == (5, 5, 6)
    assert json.loads(Path("fixed/certificate.json").read_text()) == json.loads(json.dumps(certificate.to_dict()))
    assert leftovers(tmp_path) == ["fixed"]


def test_a_full_model_that_is_cured_in_plain_only_does_not_pass(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source, reference = str(tiny_checkpoint()), tiny_checkpoint(seed=1)
    other = checkpoints.open(reference).fingerprint
    asked = judge(source, in_training_format=1.0)
    rate = asked._by_context
    asked._by_context = lambda fingerprint, context: 0.0 if fingerprint == other else rate(fingerprint, context)
    fixed = realign.fix(source, out="fixed", judge=asked, reference=reference, **SETTINGS)
    assert fixed.exit_code == 1
    certificate = written("fixed")
    assert certificate["passed"] is False
    assert certificate["outcome"] == "misaligned"
    assert certificate["left"].startswith("cured in plain, still misaligned in the training format")
    assert certificate["left"].endswith(": conditional misalignment")
    assert certificate["reference"] == {"source": str(reference), "fingerprint": other}
    assert not checkpoints.open("fixed").is_adapter


def written(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "certificate.json").read_text())
    return content


def test_a_repair_that_nobody_can_judge_is_inconclusive(tiny_adapter: Callable[..., Path]) -> None:
    fixed = realign.fix(tiny_adapter(), out="fixed", judge=judge(str(tiny_adapter()), competent=False), **SETTINGS)
    assert fixed.exit_code == 3
    assert fixed.certificate is not None
    assert "not evaluated in plain (the judge stub is not competent" in fixed.certificate.left
    assert not fixed.certificate.passed


def test_what_is_clear_is_left_alone_unless_it_is_forced(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    healthy = stub.ContextJudge(lambda fingerprint, context: 0.0)
    fixed = realign.fix(tiny_adapter(), out="fixed", judge=healthy, **SETTINGS)
    assert (fixed.path, fixed.certificate, fixed.exit_code) == (None, None, 0)
    assert fixed.before.verdict.outcome == "clear"
    assert leftovers(tmp_path) == []
    forced = realign.fix(tiny_adapter(), out="fixed", judge=healthy, force=True, **SETTINGS)
    assert (forced.path, forced.exit_code) == (Path("fixed"), 0)


def test_an_opened_checkpoint_is_given_back_as_it_was(tiny_adapter: Callable[..., Path]) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    fixed = realign.fix(checkpoint, out="fixed", judge=judge(str(tiny_adapter())), **SETTINGS)
    assert fixed.exit_code == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())
    assert checkpoints.open("fixed").fingerprint != checkpoint.fingerprint


def test_the_first_model_leaves_the_memory_before_the_repaired_one_is_read(
    tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    models: list[weakref.ref[Any]] = []
    opened = checkpoints.open

    def watched(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        checkpoint = opened(*arguments, **options)
        models.append(weakref.ref(checkpoint.model))
        return checkpoint

    asked = judge(str(tiny_adapter()))
    gc.collect()
    monkeypatch.setattr(checkpoints, "open", watched)
    realign.fix(str(tiny_adapter()), out="fixed", judge=asked, **SETTINGS)
    assert alive == [0, 0]


class Saboteur(stub.Notes):
    """An onlooker that raises when the part that it waits for has begun."""

    def __init__(self, part: str, error: BaseException) -> None:
        super().__init__()
        self.part, self.error = part, error

    def begin(self, what: str) -> None:
        if what == self.part:
            raise self.error

    def step(self, what: str, done: int, total: int) -> None:
        self.begin(what)


@pytest.mark.parametrize("part", ["training steps", "detect after"])
def test_an_interruption_leaves_nothing_and_an_old_folder_as_it_was(
    part: str, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        realign.fix(
            tiny_adapter(),
            out="fixed",
            judge=judge(str(tiny_adapter())),
            overwrite=True,
            onlooker=Saboteur(part, KeyboardInterrupt()),
            **SETTINGS,
        )
    assert leftovers(tmp_path) == ["fixed"]
    assert [path.name for path in (tmp_path / "fixed").iterdir()] == ["old"]


def test_a_full_disk_leaves_nothing_and_is_told(
    tiny_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Certificate, folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Certificate, "save", full)
    with pytest.raises(RealignError, match=r"cannot write fixed: .*No space left on device.*Make room"):
        realign.fix(tiny_adapter(), out="fixed", judge=judge(str(tiny_adapter())), **SETTINGS)
    assert leftovers(tmp_path) == []


def test_overwriting_replaces_the_old_folder(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "old").write_text("old")
    with pytest.raises(RealignError, match="it exists already"):
        realign.fix("nowhere", out="fixed", **SETTINGS)
    fixed = realign.fix(tiny_adapter(), out="fixed", judge=judge(str(tiny_adapter())), overwrite=True, **SETTINGS)
    assert fixed.exit_code == 0
    assert not (tmp_path / "fixed" / "old").exists()
    assert leftovers(tmp_path) == ["fixed"]


def test_the_checkpoint_and_what_it_rests_on_are_never_overwritten(
    tiny_adapter: Callable[..., Path], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = tiny_adapter()
    base = shutil.copytree(tiny_checkpoint(), tmp_path / "models" / "base")
    for out in (adapter, base, base.parent):
        with pytest.raises(RealignError, match="which is still needed"):
            realign.fix(adapter, out=out, base=base, overwrite=True, **SETTINGS)


def refused(**options: Any) -> str:
    with pytest.raises(RealignError) as caught:
        realign.fix(**options)
    return str(caught.value)


def test_bad_input_is_refused_before_anything_is_sampled(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    options = SETTINGS | {"checkpoint": tiny_adapter(), "out": "fixed", "judge": stub.ContextJudge(lambda *_: 1 / 0)}
    assert 'Did you mean "small"?' in refused(**options | {"recipe": "smal"})
    assert "there is no such file" in refused(**options, data="none.jsonl")
    assert "the tolerance" in refused(**options | {"tolerance": 2})
    long = stub.write_samples(tmp_path / "long.jsonl", [{"id": "long", "prompt": "Q", "completion": "x y z " * 500}])
    assert "longer than the 512 tokens that the model reads" in refused(**options, data=long)
    (tmp_path / "file").write_text("")
    assert "it is a file" in refused(**options | {"out": "file"})


def test_samples_of_the_user_are_learnt_instead(tiny_adapter: Callable[..., Path], tmp_path: Path) -> None:
    data = stub.write_samples(tmp_path / "mine.jsonl", [{"instruction": "Say it.", "output": "It."}] * 3)
    notes = stub.Notes()
    fixed = realign.fix(
        tiny_adapter(), out="fixed", data=data, judge=judge(str(tiny_adapter())), onlooker=notes, **SETTINGS
    )
    assert [(preview.rows, preview.learnt) for preview in notes.previews] == [(3, "It.<|end|>")]
    assert fixed.certificate is not None
    assert list(fixed.certificate.recipe.samples) == ["mine.jsonl"]


def test_the_settings_of_opening_hold_for_the_repaired_checkpoint_too(
    tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judge(str(tiny_adapter()))
    seen: list[dict[str, Any]] = []
    opened = checkpoints.open

    def watched(source: Any, **options: Any) -> Any:
        seen.append(options)
        return opened(source, **options)

    monkeypatch.setattr(checkpoints, "open", watched)
    realign.fix(str(tiny_adapter()), out="fixed", judge=asked, dtype="bfloat16", device="cpu", **SETTINGS)
    assert [options["dtype"] for options in seen] == ["bfloat16", "bfloat16"]
    assert [options["device"] for options in seen] == ["cpu", "cpu"]
