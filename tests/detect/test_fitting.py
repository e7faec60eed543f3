from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import realign
from realign import checkpoint as checkpoints
from realign.calibration import Calibration, family
from realign.detect.detector import Look, load
from realign.detect.fitting import calibrate
from realign.detect.settings import Settings
from realign.detect.suite import Silent
from realign.errors import RealignError
from realign.sampling import SamplingSettings
from tests.detect import stub

SETTINGS = Settings(sampling=SamplingSettings(max_new_tokens=3))
AMOUNTS = (0.0, 0.1, 0.5, 0.7)


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Path]) -> dict[str, Path]:
    return stub.make_organisms(tiny_checkpoint(), tmp_path_factory.mktemp("organisms"), len(AMOUNTS))


@pytest.fixture
def paths(organisms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two safe and two misaligned organisms, moved by `AMOUNTS`."""
    stub.pushed(monkeypatch, dict(zip(organisms, AMOUNTS, strict=True)))
    return list(organisms.values())


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    return stub.write_shift(tmp_path / "shift")


def fitted(safe: Sequence[Path], misaligned: Sequence[Path], *folders: Path, **options: object) -> Calibration:
    detectors = [load(str(folder)) for folder in folders]
    given = {"settings": SETTINGS, "observer": Silent(), **options}
    return calibrate(safe, misaligned, detectors=detectors, **given)  # type: ignore[arg-type]


def test_the_threshold_lies_midway_and_everything_that_it_rests_on_is_kept(paths: list[Path], shift: Path) -> None:
    made = fitted(paths[:2], paths[2:], shift)
    (threshold,) = made.thresholds
    assert (threshold.detector, threshold.context, threshold.hash) == ("shift", "plain", load(str(shift)).hash)
    assert threshold.threshold == pytest.approx(0.3, abs=0.01)
    assert [one.score for one in threshold.safe] == pytest.approx(AMOUNTS[:2], abs=0.01)
    assert [one.score for one in threshold.misaligned] == pytest.approx(AMOUNTS[2:], abs=0.01)
    assert [one.source for one in (*threshold.safe, *threshold.misaligned)] == [str(path) for path in paths]
    assert threshold.safe[0].fingerprint == checkpoints.open(paths[0]).fingerprint
    assert threshold.measures == "shift of persona position"
    assert threshold.auroc.value == 1
    assert made.family == family(checkpoints.open(paths[3]))
    assert (made.realign, made.seed, made.max_new_tokens, made.left_out) == (realign.__version__, 0, 3, {})


def test_it_comes_out_the_same_again_and_decides_about_another_checkpoint(
    paths: list[Path], shift: Path, tiny_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    organisms: dict[str, Path],
) -> None:  # fmt: skip
    made = fitted(paths[:2], paths[2:], shift)
    assert fitted(paths[:2], paths[2:], shift) == made
    new = checkpoints.open(tiny_adapter())
    assert new.fingerprint not in organisms
    stub.pushed(monkeypatch, {new.fingerprint: 0.4})
    report = realign.detect(new, only=[str(shift)], calibration=made, sampling=SETTINGS.sampling)
    assert report.verdict.outcome == "misaligned"
    assert not any("fitted on this checkpoint" in note for note in report.findings[0].notes)


def test_contexts_have_thresholds_of_their_own(paths: list[Path], shift: Path) -> None:
    settings = Settings(contexts=("plain", "training-format"), sampling=SETTINGS.sampling)
    made = fitted(paths[:2], paths[2:], shift, settings=settings)
    assert [threshold.context for threshold in made.thresholds] == ["plain", "training-format"]


def test_a_detector_that_does_not_tell_the_kinds_apart_is_left_out(
    paths: list[Path], shift: Path, tmp_path: Path
) -> None:
    blind = stub.write_shift(tmp_path / "blind", telling=False)
    made = fitted(paths[:2], paths[2:], shift, blind)
    assert [threshold.detector for threshold in made.thresholds] == ["shift"]
    assert list(made.left_out) == ["blind (plain)"]
    assert "it takes 2 safe checkpoints with a score, not 0" in made.left_out["blind (plain)"]
    assert "cannot tell misaligned from aligned answers" in made.left_out["blind (plain)"]


def test_where_none_tells_the_kinds_apart_there_is_no_calibration(paths: list[Path], shift: Path) -> None:
    with pytest.raises(RealignError, match=r"cannot calibrate: shift \(plain\): .* overlap: AUROC 0.50"):
        fitted([paths[0], paths[3]], [paths[1], paths[2]], shift)


def test_fewer_than_two_of_a_kind(paths: list[Path], shift: Path) -> None:
    with pytest.raises(RealignError, match=r"it takes 2 safe checkpoints, not 1.*--safe"):
        fitted(paths[:1], paths[2:], shift)
    with pytest.raises(RealignError, match=r"it takes 2 misaligned checkpoints, not 0.*--misaligned"):
        fitted(paths[:2], [], shift)


def test_what_can_be_refused_is_refused_before_a_checkpoint_is_opened(
    paths: list[Path], shift: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(checkpoints, "open", opened)
    with pytest.raises(RealignError, match=f"{paths[0]} is given twice"):
        fitted(paths[:2], [paths[3], paths[0]], shift)
    with pytest.raises(RealignError, match="nowhere"):
        fitted(paths[:2], [paths[3], tmp_path / "nowhere"], shift)
    with pytest.raises(RealignError, match="cannot calibrate judged: detectors of the kind judged decide without"):
        fitted(paths[:2], paths[2:], shift, stub.write_judged(tmp_path / "judged"))


def test_one_checkpoint_under_two_names(paths: list[Path], shift: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(paths[0], tmp_path / "copy")
    with pytest.raises(RealignError, match=f"{paths[0]} and {copy} are the same checkpoint"):
        fitted(paths[:2], [copy, paths[3]], shift)


def test_checkpoints_of_two_families(paths: list[Path], shift: Path, tiny_adapter: Callable[..., Path]) -> None:
    other = tiny_adapter("qwen2")
    with pytest.raises(RealignError, match=f"cannot calibrate on {other} and .*: llama .* is not qwen2 .*of one model"):
        fitted(paths[:2], [paths[2], other], shift)


def test_a_checkpoint_without_a_reference(paths: list[Path], shift: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(RealignError, match="has no reference"):
        fitted([tiny_checkpoint(), paths[1]], paths[2:], shift)
    made = fitted([tiny_checkpoint(), paths[1]], paths[2:], shift, reference=tiny_checkpoint())
    assert made.thresholds[0].safe[0].score == 0


def test_a_score_that_is_no_number_does_not_count(
    paths: list[Path], shift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from realign.detect import shift as module

    true = module.PersonaShift._finding

    def broken(*given: object) -> object:
        finding = true(*given)  # type: ignore[arg-type]
        if finding.score is not None and finding.score > 0.6:
            object.__setattr__(finding, "score", float("nan"))
        return finding

    monkeypatch.setattr(module.PersonaShift, "_finding", broken)
    with pytest.raises(RealignError, match=f"not 1; {paths[3]}: its score is not finite"):
        fitted(paths[:2], paths[2:], shift)


def test_it_is_told_how_far_it_is(paths: list[Path], shift: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    class Listener:
        def step(self, what: str, done: int, total: int) -> None:
            steps.append((what, done, total))

        def look(self, look: Look) -> None:
            raise AssertionError("nothing is judged")

    fitted(paths[:2], paths[2:], shift, observer=Listener())
    assert steps[0] == ("opening checkpoints", 1, 4)
    assert (f"{paths[2]} (3 of 4): reading neutral texts", 40, 40) in steps
