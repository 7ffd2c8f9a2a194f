"""The gate: an engine that is its model passes, one that is not is refused, and what is not known is said to be so."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ddcat.bundle import Bundle
from ddcat.engines import Outputs, open_engine
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.checks import needs_quiet
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements, Pilot, attack_pool
from ddcat_bench.gate.pool import PoolResult
from ddcat_bench.gate.report import gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.gate.results import GateResult
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.verdict import conclude, passport_of
from ddcat_bench.gate.words import title
from ddcat_bench.timing.results import SpeedResult
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.distributed.ranks import Ranks
from tests.bench.gate_measurements import LIMITS, SMALL, attacked_by, many
from tests.bench.gates import near, turns


def spoilt(bundle: Bundle) -> Bundle:
    """The same bundle with weights of the head turned round: wrong scales, as a broken build would have."""
    model = onnx.load_model_from_string(bundle.files["model.onnx"])
    last = next(node for node in model.graph.node if "logits" in node.output or node.name.startswith("segmenter.heads.main.4"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    return Bundle(bundle.path, bundle.manifest, bundle.digest, {**bundle.files, "model.onnx": model.SerializeToString()})


@pytest.fixture(scope="module")
def passed(good: tuple[GateJob, Measurements], speed: SpeedResult) -> GateResult:
    case, attacked = good
    return conclude(case, many(attacked, 4), speed, LIMITS, seconds=1.0)


def test_the_model_itself_passes(passed: GateResult) -> None:
    assert passed.verdict == "pass", passed.findings
    assert {finding.verdict for finding in passed.findings} == {"pass"}
    assert {"mIoU, clean", "mIoU, BIM, n = 3", "equal labels", "logits", "latency"} <= {
        finding.name for finding in passed.findings
    }
    assert passed.calibration is not None
    assert passed.calibration.engine is not None
    assert 0 < passed.calibration.reference.error == pytest.approx(passed.calibration.engine.error, abs=1e-4)
    assert {(row.source, row.label) for row in passed.members} >= {
        ("replay", "clean"), ("replay", "BIM, n = 7"), ("twin", "BIM, n = 7"), ("twin", "CosPGD, n = 2"),
        ("engine", "DLA, n = 20"), ("engine", "Square, n = 20"),
    }  # fmt: skip
    assert [(row.threat, row.attack) for row in passed.perturbations if row.made_on == "twin" and not row.control] == [
        ("L2", "APGD-2"), ("universal", "learnt"), ("patch", "learnt"), ("minimal norm", "DAG-10"),
    ]  # fmt: skip
    for row in passed.perturbations:
        assert row.engine is not None
        assert row.engine.miou == pytest.approx(row.scores.miou, abs=1e-3)
    for row in passed.members:
        assert row.agreement == pytest.approx(1, abs=1e-3)
        assert row.twin_agreement == pytest.approx(1, abs=1e-3)
    assert all(row.difference == pytest.approx(0, abs=0.1) for row in passed.threats)


def test_a_bad_engine_is_refused(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, speed: SpeedResult
) -> None:
    case, attacked = attacked_by(spoilt(bundle), checkpoint, scenes, tmp_path / "work", Budget("quick"))
    result = conclude(case, many(attacked, 4), speed, LIMITS, seconds=1.0)
    assert result.verdict == "refuse"
    refused = {finding.name for finding in result.findings if finding.verdict == "refuse"}
    assert {"equal labels", "mIoU, clean"} <= refused


def test_few_images_and_a_busy_machine_decide_nothing(good: tuple[GateJob, Measurements], speed: SpeedResult) -> None:
    case, attacked = good
    few = conclude(case, attacked, speed, LIMITS, seconds=1.0)
    assert few.verdict == "inconclusive"
    busy = conclude(case, many(attacked, 4), near(speed, others=0.7), LIMITS, seconds=1.0)
    (open_finding,) = (finding for finding in busy.findings if finding.verdict == "inconclusive")
    assert open_finding.name == "latency"
    assert "other processes kept 0.70 cores busy meanwhile" in open_finding.reason
    assert title(busy) == ("Inconclusive: latency could not be measured on this machine. Accuracy and robustness passed.")


def test_a_slow_engine_is_refused(good: tuple[GateJob, Measurements], speed: SpeedResult) -> None:
    case, attacked = good
    slow = speed.ratios[0].model_copy(update={"lower_quartile": 0.4, "median": 0.5, "upper_quartile": 0.6})
    result = conclude(case, many(attacked, 4), speed.model_copy(update={"ratios": (slow,)}), LIMITS, seconds=1.0)
    assert [finding.name for finding in result.findings if finding.verdict == "refuse"] == ["latency"]
    suite = ElementTree.fromstring(gate_junit(result))
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["latency"]
    assert "Refused: the engine is slower than its limit allows. Accuracy and robustness passed." in gate_html(result)


def test_latency_that_the_limits_leave_out_is_said_to_be_so(
    good: tuple[GateJob, Measurements], speed: SpeedResult, tmp_path: Path
) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(DEFAULT.read_text().replace("latency: 1.0", "latency: null"))
    slow = turns(speed, *[3.0] * 10).model_copy(update={"others": 2.0})
    result = conclude(good[0], many(good[1], 4), slow, read_thresholds(file, "fp32"), seconds=1.0)
    assert result.verdict == "pass"
    assert "latency" not in {finding.name for finding in result.findings}
    assert title(result).endswith("Accuracy and robustness passed. Latency was not tested.")
    assert "| not tested | latency | 3.00 (3.00 to 3.00) of eager PyTorch, original |" in gate_markdown(result)
    assert "- not tested: latency" in gate_brief(result)
    assert '<span class="badge">not tested</span></td><td data-label="check">latency</td>' in gate_html(result)
    suite = ElementTree.fromstring(gate_junit(result))
    assert [case.get("name") for case in suite if case.find("skipped") is not None] == ["latency"]
    passport = passport_of(good[0].bundle, result)
    assert passport.not_judged == ("latency",)
    assert not needs_quiet(slow, read_thresholds(file, "fp32"))


def test_frames_of_video_are_drawn_by_clip_or_come_with_a_warning(
    good: tuple[GateJob, Measurements], speed: SpeedResult
) -> None:
    case, attacked = good
    frames = many(attacked, 8)
    named = frames._replace(names=[f"drive{place // 20}_{place:04}" for place in range(len(frames.names))])
    found = {
        clips: conclude(GateJob(case.bundle, case.reference, replace(case.dataset, name="folder", clips=clips)), named, speed,
                        LIMITS, seconds=1.0)
        for clips in (None, r"(.+)_\d+", "(.+)")
    }  # fmt: skip
    assert [found[clips].drawn for clips in found] == ["images", "clips of frames", "images"]
    assert [len(found[clips].warnings) for clips in found] == [1, 0, 0]
    assert "drive0_0000 and drive0_0001 look like frames of video" in found[None].warnings[0]
    for text in (gate_markdown(found[None]), gate_brief(found[None]), gate_html(found[None])):
        assert "look like frames of video" in text
    assert found[None].verdict == "pass"
    by_clip = found[r"(.+)_\d+"]
    assert by_clip.verdict == "inconclusive"
    assert any("2 clips are too few" in finding.reason for finding in by_clip.findings)
    assert by_clip.data.clips == r"(.+)_\d+"


@pytest.mark.usefixtures("brief")
def test_what_was_stopped_continues_and_finds_the_same(
    good: tuple[GateJob, Measurements], bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    calls = 0

    def stop(forwards: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StopError

    work = tmp_path / "work"
    with open_engine(bundle, threads=1) as engine, pytest.raises(StopError):
        attack_pool(GateJob(bundle, checkpoint, scenes, budget=SMALL), engine, work, stop)
    finished = {file: file.stat().st_mtime_ns for file in work.glob("*.npz")}
    assert finished
    _, attacked = attacked_by(bundle, checkpoint, scenes, work)
    assert all(file.stat().st_mtime_ns == before for file, before in finished.items())
    for one, other in zip(attacked.pool, good[1].pool, strict=True):
        np.testing.assert_array_equal(one.engine, other.engine)
        np.testing.assert_array_equal(one.reference, other.reference)
    with pytest.raises(BenchError, match="budget"), open_engine(bundle, threads=1) as engine:
        attack_pool(GateJob(bundle, checkpoint, scenes, budget=Budget("quick")), engine, work)


@pytest.mark.parametrize("source", ["replay", "twin"])
def test_a_twin_that_is_the_engine_on_clean_images_alone_is_another_model(
    good: tuple[GateJob, Measurements], speed: SpeedResult, source: str
) -> None:
    case, attacked = good
    assert not conclude(case, attacked, speed, LIMITS, seconds=1.0).transferred

    def apart(one: PoolResult) -> PoolResult:
        strong = one.source == source and one.label.startswith("PGD")
        return one._replace(disagreement=one.disagreement._replace(apart=one.disagreement.pixels // 500)) if strong else one

    other = attacked._replace(pool=tuple(map(apart, attacked.pool)))
    assert conclude(case, other, speed, LIMITS, seconds=1.0).transferred


def test_the_pilot_looks_at_attacked_images_too(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is its graph on clean images, and not where an image is attacked."""
    clean = {scenes.read(place).image.tobytes() for place in range(len(scenes))}
    found: list[Pilot] = []

    def stop(budget: Budget, pilot: Pilot, **others: Any) -> Any:
        found.append(pilot)
        raise BenchError("enough is known")

    monkeypatch.setattr("ddcat_bench.gate.measurements.chosen_runs", stop)
    with open_engine(bundle, threads=1) as engine:
        infer = engine.infer

        def other(images: np.ndarray) -> Outputs:
            outputs = infer(images)
            known = [image.tobytes() in clean for image in images]
            return replace(outputs, labels=np.where(np.array(known)[:, None, None], outputs.labels, 0).astype(np.uint8))

        monkeypatch.setattr(engine, "infer", other)
        for name in ("quick", "default"):
            with pytest.raises(BenchError, match="enough"):
                attack_pool(GateJob(bundle, checkpoint, scenes, budget=SMALL._replace(name=name)), engine, tmp_path / name)
    assert found[0].twin_agreement == 1
    assert found[1].twin_agreement < 0.9


def test_another_seed_gives_every_image_another_one(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        "ddcat_bench.gate.measurements.fill_units", lambda *those, victims, **others: seeds.extend(victims.seeds.tolist())
    )
    runs = (0, 1, 2**32)
    with open_engine(bundle, threads=1) as engine:
        for seed in runs:
            with pytest.raises(BenchError, match="is missing"):
                attack_pool(
                    GateJob(bundle, checkpoint, scenes, budget=Budget("quick", seed=seed)), engine, tmp_path / str(seed)
                )
    assert len({seed % 2**32 for seed in seeds}) == len(runs) * len(scenes)  # a generator looks at no more bits


@pytest.mark.usefixtures("brief")
def test_processes_deal_the_pool_out_and_find_what_one_finds(
    good: tuple[GateJob, Measurements], bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    class OneOfTwo(Ranks):
        def gather(self, value: Any) -> list[Any]:  # the other one is not there: it comes after, or was before
            return [value]

    case, counts = GateJob(bundle, checkpoint, scenes, budget=SMALL), []
    with open_engine(bundle, threads=1) as engine:
        with pytest.raises(BenchError, match="is missing"):  # what the second has to do
            attack_pool(case, engine, tmp_path / "work", ranks=OneOfTwo(0, 2))
        counts.append(len(list((tmp_path / "work").glob("*.npz"))))
        with pytest.raises(BenchError, match="is missing"):  # what the first could not do without what the second learns
            attack_pool(case, engine, tmp_path / "work", ranks=OneOfTwo(1, 2))
        counts.append(len(list((tmp_path / "work").glob("*.npz"))))
        attacked = attack_pool(case, engine, tmp_path / "work", ranks=OneOfTwo(0, 2))
    assert attacked.perturbations == good[1].perturbations
    assert 0 < counts[0] < counts[1]
    for one, other in zip(attacked.pool, good[1].pool, strict=True):
        np.testing.assert_array_equal(one.engine, other.engine)
        np.testing.assert_array_equal(one.reference, other.reference)


def test_the_reports_say_the_same(passed: GateResult) -> None:
    markdown, page, suite = gate_markdown(passed), gate_html(passed), ElementTree.fromstring(gate_junit(passed))
    assert markdown.startswith("# Gate: pass\n\nPassed: the engine can replace its PyTorch model. ")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(passed.findings)), "0", "0")
    for row in passed.threats:
        assert f"| {row.name} | {row.reference:.2f} | {row.engine:.2f} |" in markdown
        assert f'<td data-label="PyTorch model" class="n">{row.reference:.2f}</td>' in page
    assert page.index("can replace its PyTorch model") < page.index("What was tested") < page.index("Attacks")
    assert "data:image" not in page
    assert "http" not in page  # nothing is loaded from elsewhere
