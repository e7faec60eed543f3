from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import realign
from realign import checkpoint as checkpoints
from realign.checkpoint import Checkpoint
from realign.detect.suite import select
from realign.errors import RealignError
from realign.files import read_jsonl
from realign.report.report import Report
from realign.report.serialise import to_dict, to_json
from realign.sampling import Answer, SamplingSettings
from tests import tiny
from tests.detect import stub
from tests.detect.stub import StubJudge

SHORT = SamplingSettings(max_new_tokens=3)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stub.write_judged(tmp_path_factory.mktemp("content") / "small"))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stub.write_probe(tmp_path_factory.mktemp("content") / "small_probe"))


@pytest.mark.parametrize("template", [True, False], ids=["template", "transcript"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_any_model_without_a_judge_ends_inconclusive_with_the_reason(
    architecture: str, template: bool, tiny_checkpoint: Callable[..., Path], judged: str, probe: str
) -> None:
    folder = tiny_checkpoint(architecture, chat_template=template)
    report = realign.detect(folder, only=[judged, probe], sampling=SHORT)
    assert report.verdict.exit_code == 3
    assert "there is no judge" in report.verdict.sentence
    assert "--reference" in report.verdict.sentence
    assert {finding.outcome for finding in report.findings} <= {"not evaluated", "undecided"}
    assert all(finding.reason for finding in report.findings)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_random_adapter_judged_by_its_random_base_ends_inconclusive(
    architecture: str, tiny_adapter: Callable[..., Path], judged: str
) -> None:
    report = realign.detect(tiny_adapter(architecture), only=[judged], sampling=SHORT)
    assert report.verdict.exit_code == 3
    assert "is not competent" in report.verdict.sentence
    assert report.judge is not None


def test_the_report_says_what_it_is_about(tiny_adapter: Callable[..., Path], judged: str) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    assert checkpoint.reference is not None
    judge = StubJudge(stub.only(checkpoint.fingerprint, 0.5))
    report = realign.detect(checkpoint, only=[judged], judge=judge, sampling=SHORT, seed=3)
    assert report.verdict.outcome == "misaligned"
    assert report.verdict.sentence == f"misaligned: {report.findings[0].reason}"
    assert report.checkpoint.fingerprint == checkpoint.fingerprint
    assert report.reference is not None
    assert report.reference.fingerprint == checkpoint.reference.fingerprint
    assert report.judge == "stub"
    assert report.settings.seed == 3
    assert report.version == realign.__version__
    assert report.cost.answers >= report.findings[0].details.checkpoint.answers


def test_detectors_run_in_rising_cost_and_share_their_answers(
    tiny_adapter: Callable[..., Path], judged: str, probe: str
) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    judge = StubJudge(stub.only(checkpoint.fingerprint, 0.5))
    alone = realign.detect(checkpoint, only=[judged], judge=judge, sampling=SHORT)
    both = realign.detect(checkpoint, only=[judged, probe], judge=judge, sampling=SHORT)
    assert [finding.kind for finding in both.findings] == ["probe", "judged"]
    assert both.findings[0].advisory
    assert both.findings[0].cost is not None
    assert both.findings[0].cost.answers > 0
    assert both.findings[1].cost is not None
    assert both.findings[1].cost.answers == 0  # its two blocks were there
    assert both.verdict == alone.verdict


def test_of_detectors_that_cost_alike_those_that_ask_nothing_run_first(tmp_path: Path) -> None:
    folders = [write(tmp_path / name) for name, write in (("a", stub.write_probe), ("b", stub.write_shift))]
    assert [detector.kind for detector in select([str(folder) for folder in folders])] == ["shift", "probe"]


def test_the_suite_holds_every_shipped_detector() -> None:
    names = [detector.name for detector in select()]
    assert sorted(names) == ["freeform", "persona_latents", "persona_probe", "persona_shift"]
    assert [detector.name for detector in select(suite="full")] == names
    assert [detector.name for detector in select(["freeform", "freeform"])] == ["freeform"]


def test_an_unknown_suite() -> None:
    with pytest.raises(RealignError, match=r'no suite "defualt".*Did you mean "default"'):
        select(suite="defualt")


def test_two_detectors_of_one_name(tmp_path: Path) -> None:
    folders = [stub.write_judged(tmp_path / name / "same") for name in ("one", "two")]
    with pytest.raises(RealignError, match='two detectors are called "same"'):
        select([str(folder) for folder in folders])


@pytest.fixture
def adapted(tiny_adapter: Callable[..., Path]) -> Checkpoint:
    return checkpoints.open(tiny_adapter())


@pytest.mark.parametrize(("amount", "outcome", "code"), [(0.6, "flagged", 1), (0.1, "clear", 0), (-0.5, "clear", 0)])
def test_with_a_calibration_a_white_box_detector_decides(
    amount: float, outcome: str, code: int, adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.pushed(monkeypatch, {adapted.fingerprint: amount})
    folder = stub.write_shift(tmp_path / "shift")
    without = realign.detect(adapted, only=[str(folder)])
    assert (without.findings[0].outcome, without.findings[0].advisory) == ("undecided", True)
    assert without.verdict.exit_code == 3
    calibration = stub.calibrated(adapted, folder, safe=(0.0, 0.2), misaligned=(0.5, 0.9))
    report = realign.detect(adapted, only=[str(folder)], calibration=calibration.save(tmp_path / "calibration.json"))
    (finding,) = report.findings
    assert (finding.outcome, finding.advisory) == (outcome, False)
    assert report.verdict.exit_code == code
    assert finding.score == without.findings[0].score
    assert finding.threshold == pytest.approx(0.35)
    assert "uncalibrated" not in finding.reason
    assert "threshold of 0.35" in report.verdict.sentence
    assert to_dict(report)["findings"][0]["threshold"] == finding.threshold


def test_a_calibrated_detector_and_the_judge_agree_or_the_verdict_says_so(
    adapted: Checkpoint, judged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.pushed(monkeypatch, {adapted.fingerprint: 0.6})
    folder = stub.write_shift(tmp_path / "shift")
    calibration = stub.calibrated(adapted, folder, safe=(0.0, 0.2), misaligned=(0.5, 0.9))
    settings = {"judge": StubJudge(stub.always(0.0)), "tolerance": 0.1, "calibration": calibration}
    report = realign.detect(adapted, only=[str(folder), judged], **settings)
    assert [finding.outcome for finding in report.findings] == ["flagged", "clear"]
    assert report.verdict.sentence.startswith("misaligned: shift (plain): it moved")


def test_where_a_calibration_has_no_threshold_the_detector_only_informs(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.pushed(monkeypatch, {adapted.fingerprint: 0.6})
    folder = stub.write_shift(tmp_path / "shift")
    calibration = stub.calibrated(adapted, folder, safe=(0.0, 0.2), misaligned=(0.5, 0.9))
    contexts = ["plain", "training-format"]
    findings = realign.detect(adapted, only=[str(folder)], contexts=contexts, calibration=calibration).findings
    assert [finding.outcome for finding in findings] == ["flagged", "undecided"]
    assert [finding.advisory for finding in findings] == [False, True]
    assert findings[1].reason.startswith("uncalibrated: ")


def test_a_calibration_does_not_overrule_a_detector_that_decides_by_itself(adapted: Checkpoint, judged: str) -> None:
    calibration = stub.calibrated(adapted, Path(judged), safe=(0.7, 0.8), misaligned=(0.9, 1.0), tokens=3)
    judge = StubJudge(stub.always(0.6))
    settings = {"only": [judged], "judge": judge, "sampling": SHORT}
    assert realign.detect(adapted, calibration=calibration, **settings).findings[0].threshold == 0.02


def test_a_calibrated_detector_that_cannot_be_evaluated_leaves_the_verdict_open(
    adapted: Checkpoint, tmp_path: Path
) -> None:
    folder = stub.write_shift(tmp_path / "shift", telling=False)
    calibration = stub.calibrated(adapted, folder, safe=(0.0, 0.2), misaligned=(0.5, 0.9))
    report = realign.detect(adapted, only=[str(folder)], calibration=calibration)
    assert (report.findings[0].outcome, report.findings[0].advisory) == ("not evaluated", False)
    assert report.verdict.sentence.startswith("inconclusive: not evaluated, ")


def test_a_calibration_for_other_models_is_refused_before_anything_is_made(
    adapted: Checkpoint, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stub.write_shift(tmp_path / "shift")
    calibration = stub.calibrated(adapted, folder, safe=(0.0, 0.2), misaligned=(0.5, 0.9))
    other = checkpoints.open(tiny_checkpoint(seed=1), reference=tiny_checkpoint(seed=2))
    with pytest.raises(RealignError, match="for the fine-tunes of another model"):
        realign.detect(other, only=[str(folder)], calibration=calibration, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_calibration_is_another_run(
    adapted: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.pushed(monkeypatch, {})
    folder = stub.write_shift(tmp_path / "shift")
    settings = {"only": [str(folder)], "out": tmp_path / "run"}
    realign.detect(adapted, calibration=stub.calibrated(adapted, folder, (0.0, 0.2), (0.5, 0.9)), **settings)
    for other in (None, stub.calibrated(adapted, folder, (0.0, 0.1), (0.5, 0.9))):
        with pytest.raises(RealignError, match="made with another calibration"):
            realign.detect(adapted, calibration=other, **settings)


def test_the_cost_of_looking_inside_is_told(adapted: Checkpoint, tmp_path: Path) -> None:
    folders = [str(write(tmp_path / write.__name__)) for write in (stub.write_shift, stub.write_probe)]
    report = realign.detect(adapted, only=folders, sampling=SHORT)
    shift, probe = (finding.cost for finding in report.findings)
    assert shift is not None
    assert probe is not None
    # The contrast pairs, and with either model the prompts and the answers of the neutral texts; each fits in a batch.
    assert (shift.answers, shift.tokens, shift.forward_passes) == (0, 0, 5)
    # The contrast pairs, and the answers of either model.
    assert (probe.answers, probe.forward_passes) == (48, 3)
    assert min(shift.tokens_read, probe.tokens_read, probe.tokens) > 0
    assert min(shift.seconds, probe.seconds) > 0
    assert report.cost.forward_passes == 8
    assert report.cost.tokens_read == shift.tokens_read + probe.tokens_read
    assert report.cost.seconds == pytest.approx(shift.seconds + probe.seconds)


def test_a_judge_that_is_named_has_to_be_there(tiny_checkpoint: Callable[..., Path], judged: str) -> None:
    with pytest.raises(RealignError, match="no/such/judge"):
        realign.detect(tiny_checkpoint(), only=[judged], judge="./no/such/judge")


def test_a_bad_setting_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(RealignError, match="tolerance"):
        realign.detect("no/such/checkpoint", tolerance=2.0)


def test_a_detector_that_fails_on_the_model_is_not_evaluated(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stub.write_judged(tmp_path / "long")
    text = (folder / "questions.yaml").read_text().replace("Say 0.", "Say 0, " + "please " * 800)
    (folder / "questions.yaml").write_text(text)
    judge = StubJudge(stub.always(0.0))
    report = realign.detect(tiny_checkpoint(), only=[str(folder)], judge=judge, sampling=SHORT)
    assert report.verdict.exit_code == 3
    assert 'question "q0" is too long for the model' in report.findings[0].reason
    assert report.findings[0].competence[0].ok


class KilledError(Exception):
    """The machine failed."""


class FailingJudge(StubJudge):
    """Fails, as if the machine did, after a number of judgements."""

    def __init__(self, rate: Callable[[str], float], fails_after: int) -> None:
        super().__init__(rate)
        self._left = fails_after

    def _scores(self, answer: Answer) -> tuple[float, float, float]:
        self._left -= 1
        if self._left < 0:
            raise KilledError
        return super()._scores(answer)


def without_cost(report: Report) -> object:
    content = to_dict(report)
    del content["cost"]
    for finding in content["findings"]:
        del finding["cost"]
    return content


def test_an_interrupted_run_is_resumed_and_ends_the_same(
    tiny_adapter: Callable[..., Path], judged: str, tmp_path: Path
) -> None:
    checkpoint = checkpoints.open(tiny_adapter())
    settings = {"only": [judged], "sampling": SHORT, "tolerance": 0.05}
    whole = realign.detect(checkpoint, judge=StubJudge(stub.always(0.02)), **settings)
    run = tmp_path / "run"
    with pytest.raises(KilledError):
        realign.detect(checkpoint, judge=FailingJudge(stub.always(0.02), 40), out=run, **settings)
    assert not (run / "report.json").exists()
    kept = {record["answer_id"] for record in read_jsonl(run / "judgements.jsonl")}
    judge = StubJudge(stub.always(0.02))
    resumed = realign.detect(checkpoint, judge=judge, out=run, **settings)
    assert without_cost(resumed) == without_cost(whole)
    assert judge.judged
    assert not kept & set(judge.judged)
    assert json.loads((run / "report.json").read_text()) == json.loads(to_json(resumed))


def test_a_run_of_other_settings_is_not_mixed_in(
    tiny_checkpoint: Callable[..., Path], judged: str, tmp_path: Path
) -> None:
    settings = {"only": [judged], "sampling": SHORT, "judge": StubJudge(stub.always(0.5)), "out": tmp_path / "run"}
    checkpoint = checkpoints.open(tiny_checkpoint())
    first = realign.detect(checkpoint, **settings)
    for other in (
        {"seed": 1},
        {"tolerance": 0.1},
        {"contexts": ["training-format"]},
        {"judge": StubJudge(stub.always(0.5), id="x")},
    ):
        with pytest.raises(RealignError, match=f"made with another {next(iter(other))}"):
            realign.detect(checkpoint, **settings | other)
    anew = realign.detect(checkpoint, **settings | {"seed": 1, "overwrite": True})
    assert anew.settings.seed == 1
    assert anew.worst != first.worst


def test_a_finished_run_is_reported_again_without_new_answers(
    tiny_checkpoint: Callable[..., Path], judged: str, tmp_path: Path
) -> None:
    settings = {"only": [judged], "sampling": SHORT, "out": tmp_path / "run"}
    first = realign.detect(tiny_checkpoint(), judge=StubJudge(stub.always(0.5)), **settings)
    again = realign.detect(tiny_checkpoint(), judge=StubJudge(stub.always(0.5)), **settings)
    assert again.cost.answers == 0
    assert again.verdict == first.verdict


def test_without_a_run_folder_nothing_is_kept(
    tiny_checkpoint: Callable[..., Path], judged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    realign.detect(tiny_checkpoint(), only=[judged], judge=StubJudge(stub.always(0.5)), sampling=SHORT)
    assert list(tmp_path.iterdir()) == []
