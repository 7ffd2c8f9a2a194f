"""The gate: an engine that is its model passes, one that is not is refused, and what is not known is said to be so."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ddcat import cli
from ddcat.bundle import Bundle, open_bundle
from ddcat.engines import Outputs, open_engine
from ddcat.passport import read_passport
from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.bootstrap import Scheme
from ddcat_bench.errors import BenchError
from ddcat_bench.gate import checks
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.checks import check_latency, needs_quiet
from ddcat_bench.gate.disagreement import MARGINS, Disagreement
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements, Pilot, attack_pool, chosen_runs
from ddcat_bench.gate.pipeline import run_job
from ddcat_bench.gate.pool import EPSILONS, PoolResult, attack_runs
from ddcat_bench.gate.report import gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.gate.results import GateResult
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.verdict import conclude, passport_of, worst
from ddcat_bench.gate.words import title
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.interleave import ratio, timing
from ddcat_bench.timing.results import SpeedRatio, SpeedResult
from ddcat_bench.timing.serving_memory import Serving
from ddcat_bench.timing.speed import draw_inputs, measure
from ddcat_bench.twin.base import NotSupportedError
from ddcat_bench.twin.operators import OPERATORS
from ddcat_export.exporting import export
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.distributed.ranks import Ranks
from ddcat_train.pixels import to_8_bit

SMALL = Budget(steps=2, queries=20, query_stride=2)
LIMITS = read_thresholds(DEFAULT, "fp32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run_directory: Path, scenes: Dataset) -> Bundle:
    height, width = scenes.read(0).labels.shape
    return export(run_directory, tmp_path_factory.mktemp("gate") / "bundle", logits=True, sizes=((height, width),)).bundle


@pytest.fixture(scope="module")
def speed(bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset) -> SpeedResult:
    inputs = draw_inputs(bundle, scenes, repeats=10, batch=1, size=None)
    with open_engine(bundle, threads=1) as engine:
        found = measure(bundle, engine, checkpoint, inputs, threads=1, peak=lambda serving: None)
    quick = found.ratios[0].model_copy(update={"lower_quartile": 2.0, "median": 2.1, "upper_quartile": 2.2})
    calm = tuple(e.model_copy(update={"times": e.times.model_copy(update={"stable": True})}) for e in found.contenders)
    return found.model_copy(update={"ratios": (quick,), "contenders": calm, "others": 0.0})


def attacked_by(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, work: Path, budget: Budget = SMALL
) -> tuple[GateJob, Measurements]:
    with open_engine(bundle, threads=1) as engine:
        case = GateJob(bundle, checkpoint, scenes, budget=budget)
        told: list[int] = []
        attacked = attack_pool(case, engine, work, told.append)
        assert sum(told) == pytest.approx(case.forwards, rel=0.1)
    return case, attacked


def spoilt(bundle: Bundle) -> Bundle:
    """The same bundle with weights of the head turned round: wrong scales, as a broken build would have."""
    model = onnx.load_model_from_string(bundle.files["model.onnx"])
    last = next(node for node in model.graph.node if "logits" in node.output or node.name.startswith("segmenter.heads.main.4"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    return Bundle(bundle.path, bundle.manifest, bundle.digest, {**bundle.files, "model.onnx": model.SerializeToString()})


def many(attacked: Measurements, times: int) -> Measurements:
    """As if there had been more images: the few of these tests decide nothing."""

    def repeated(judged: PoolResult) -> PoolResult:
        wide: dict[str, Any] = {name: np.tile(getattr(judged, name), (times, 1, 1)) for name in ("reference", "engine")}
        flips = Disagreement.from_array(np.tile(judged.disagreement.to_array(), (times, 1)))
        return judged._replace(**wide, disagreement=flips, attacked=np.tile(judged.attacked, times))

    names = [f"{name}-{copy}" for copy in range(times) for name in attacked.names]
    return attacked._replace(names=names, pool=tuple(map(repeated, attacked.pool)), probe=None)


@pytest.fixture(scope="module")
def good(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[GateJob, Measurements]:
    return attacked_by(bundle, checkpoint, scenes, tmp_path_factory.mktemp("good") / "work")


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
    assert {(row.source, row.label) for row in passed.members} >= {
        ("replay", "clean"), ("replay", "BIM, n = 7"), ("twin", "BIM, n = 7"), ("twin", "CosPGD, n = 2"),
        ("engine", "DLA, n = 20"), ("engine", "Square, n = 20"),
    }  # fmt: skip
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
    assert "others computed meanwhile: 0.70 cores" in open_finding.reason
    assert title(busy) == ("Inconclusive: latency could not be measured on this machine. Accuracy and robustness passed.")


def test_a_slow_engine_is_refused(good: tuple[GateJob, Measurements], speed: SpeedResult) -> None:
    case, attacked = good
    slow = speed.ratios[0].model_copy(update={"lower_quartile": 0.4, "median": 0.5, "upper_quartile": 0.6})
    result = conclude(case, many(attacked, 4), speed.model_copy(update={"ratios": (slow,)}), LIMITS, seconds=1.0)
    assert [finding.name for finding in result.findings if finding.verdict == "refuse"] == ["latency"]


def test_a_machine_that_is_not_steady_decides_nothing_of_latency(
    good: tuple[GateJob, Measurements], speed: SpeedResult
) -> None:
    result = conclude(good[0], many(good[1], 4), near(unsteady(speed)), LIMITS, seconds=1.0)
    (finding,) = (finding for finding in result.findings if finding.name == "latency")
    assert (finding.verdict, "not steady" in (finding.reason or "")) == ("inconclusive", True)


def near(speed: SpeedResult, **others: Any) -> SpeedResult:
    """As if single turns had been slower than the limit of fp32 allows, and quartiles had not."""
    ratio = speed.ratios[0].model_copy(update={"lowest": 0.9, "lower_quartile": 2.0, "median": 2.1, "upper_quartile": 2.2})
    return speed.model_copy(update={"ratios": (ratio,), **others})


def unsteady(speed: SpeedResult) -> SpeedResult:
    return speed.model_copy(
        update={
            "contenders": tuple(
                e.model_copy(update={"times": e.times.model_copy(update={"stable": False})}) for e in speed.contenders
            )
        }
    )


def turns(speed: SpeedResult, *shares: float) -> SpeedResult:
    """As if the engine had taken these shares of PyTorch's time, turn by turn."""
    own = [share * 0.1 for share in shares]
    found = SpeedRatio(baseline="original", **dict(ratio([0.1] * len(own), own)))
    contenders = tuple(
        entry.model_copy(update={"times": timing(own if entry.name == "engine" else [0.1] * len(own))})
        for entry in speed.contenders
    )
    return speed.model_copy(update={"ratios": (found,), "contenders": contenders})


@pytest.mark.parametrize(
    ("shares", "others", "verdict"),
    [
        ((0.05, 0.02, 0.12), 0.0, "pass"),  # on a machine that is not steady, and far below the limit
        ((0.05, 0.02, 0.12), 1.9, "pass"),  # and beside others
        ((0.5, 0.6, 0.99), 1.9, "pass"),
        ((0.5, 0.6, 1.01), 1.9, "inconclusive"),  # near: this needs quiet
        ((0.9, 1.0, 1.1), 0.0, "inconclusive"),
        ((2.0, 4.0, 8.0), 1.9, "inconclusive"),  # a busy machine is an excuse
        ((0.5, 0.5, 0.5), 0.0, "pass"),  # quiet
        ((1.5, 1.5, 1.5), 0.0, "refuse"),
        ((1.5, 1.5, 1.5), 1.9, "inconclusive"),
    ],
)
def test_the_worst_turn_is_held_against_the_limit_first(
    speed: SpeedResult, shares: tuple[float, ...], others: float, verdict: str
) -> None:
    measured = turns(speed, *(share for share in shares for _ in range(10))).model_copy(update={"others": others})
    finding = check_latency(measured, LIMITS)
    assert finding is not None
    assert finding.verdict == verdict, finding
    calm = measured.stable and not measured.disturbed
    assert needs_quiet(measured, LIMITS) == (verdict == "inconclusive" and not calm)


def test_one_slow_turn_of_many_decides_nothing_on_a_quiet_machine(speed: SpeedResult) -> None:
    finding = check_latency(turns(speed, *[0.5] * 29, 1.5), LIMITS)
    assert finding is not None
    assert finding.verdict == "pass"


def test_latency_that_the_limits_leave_out_is_said_to_be_so(
    good: tuple[GateJob, Measurements], speed: SpeedResult, tmp_path: Path
) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(DEFAULT.read_text().replace("latency: 1.0", "latency: null"))
    slow = turns(speed, *[3.0] * 10).model_copy(update={"others": 2.0})
    result = conclude(good[0], many(good[1], 4), slow, read_thresholds(file, "fp32"), seconds=1.0)
    assert result.verdict == "pass"
    assert "latency" not in {finding.name for finding in result.findings}
    assert title(result).endswith("accuracy and robustness are within the limits. Latency was not tested.")
    assert "| not tested | latency | 3.00 (3.00 to 3.00) of eager PyTorch, original |" in gate_markdown(result)
    assert "- not tested: latency" in gate_brief(result)
    assert '<span class="badge">not tested</span></td><td data-label="what">latency</td>' in gate_html(result)
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
        clips: conclude(GateJob(case.bundle, case.checkpoint, replace(case.dataset, name="folder", clips=clips)), named, speed,
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


def judged(source: Any, engine: int, reference: int = 50, label: str = "PGD, n = 10", epsilon: float = 0.01) -> PoolResult:
    """40 images on which each model has that percentage of mIoU."""
    made = [
        np.tile([[share, (100 - share) // 2, 100 - share - (100 - share) // 2]], (40, 1, 1)) for share in (reference, engine)
    ]
    ones = np.ones(40, np.int64)
    flips = Disagreement.from_array(np.tile(ones[:, None], (1, 5 + 2 * len(MARGINS))))
    return PoolResult(source, label, epsilon, made[0], made[1], flips, ones > 0)


def test_nothing_to_preserve_decides_nothing() -> None:
    scheme = Scheme("images", np.arange(40))
    pool = [judged("replay", 70, 70, "clean", 0.0), judged("replay", 5, 5), judged("twin", 1, 5)]
    clean, attacked = checks.check_threats(pool, scheme, LIMITS)
    assert (clean.verdict, attacked.verdict) == ("pass", None)
    assert "nothing to preserve" in attacked.reason
    findings = list(checks.check_robustness([clean, attacked]))
    assert [finding.verdict for finding in findings] == ["pass", "inconclusive"]


def test_a_replay_that_beats_the_twin_is_an_alarm() -> None:
    weak_twin = [judged("replay", 30), judged("twin", 45)]
    (alarm,) = checks.find_alarms(weak_twin, None, LIMITS, transferred=False)
    assert (alarm.name, "30.00 points" in alarm.evidence, "45.00" in alarm.evidence) == (
        "black-box beats white-box",
        True,
        True,
    )
    assert not checks.find_alarms([judged("replay", 45), judged("twin", 30)], None, LIMITS, transferred=False)
    assert not checks.find_alarms(weak_twin, None, LIMITS, transferred=True)
    assert [finding.verdict for finding in checks.check_alarms([alarm])] == ["inconclusive"]


def test_a_search_that_beats_every_gradient_is_an_alarm() -> None:
    """Compared on the images that it was made on: others count as the replay leaves them."""
    some = np.arange(40) < 4
    gradients = [judged("replay", 30), judged("twin", 30)]

    def asked(engine: int, source: str = "engine", label: str = "DLA, n = 500") -> PoolResult:
        found, others = judged(source, engine, label=label), judged(source, 30)
        return found._replace(engine=np.where(some[:, None, None], found.engine, others.engine), attacked=some)

    for transferred in (True, False):
        (alarm,) = checks.find_alarms([*gradients, asked(27)], None, LIMITS, transferred=transferred)
        assert alarm.name == "black-box beats white-box"
        assert "engine: DLA, n = 500 leaves the engine 27.00 points on 4 images" in alarm.evidence
        assert "replay: PGD, n = 10, 30.00" in alarm.evidence
    assert checks.find_alarms([*gradients, asked(20, "noise", "noise, n = 3")], None, LIMITS, transferred=False)
    assert not checks.find_alarms([*gradients, asked(29)], None, LIMITS, transferred=False)  # single regions move it
    other_bound = [one._replace(epsilon=0.02) for one in gradients]
    assert not checks.find_alarms([*other_bound, asked(20)], None, LIMITS, transferred=False)


def test_strong_attacks_that_decide_nothing_are_no_pass() -> None:
    """The pilot chose a bound at which the whole pool leaves nothing, and BIM alone would pass the engine."""
    scheme = Scheme("images", np.arange(40))
    pool = [judged("replay", 70, 70, "clean", 0.0), judged("replay", 50, 50, "BIM, n = 3", 0.03)]
    for epsilon, verdicts in ((EPSILONS[0], ["pass", "pass"]), (EPSILONS[2], ["pass", "pass", "inconclusive"])):
        rows = list(checks.check_threats([*pool, judged("replay", 8, 8, epsilon=epsilon)], scheme, LIMITS))
        findings = list(checks.check_robustness(rows))
        assert [finding.verdict for finding in findings] == verdicts
    assert findings[-1].name == "mIoU, strongest at 4/255"
    assert findings[-1].found == "8.00 against 8.00 points"


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


def test_an_engine_that_its_own_graph_breaks_is_refused() -> None:
    """A replay alone would have seen nothing."""
    scheme = Scheme("images", np.arange(40))
    pool = [judged("replay", 70, 70, "clean", 0.0), judged("replay", 40, 40), judged("twin", 20, 45)]
    _, attacked = checks.check_threats(pool, scheme, LIMITS)
    assert (attacked.reference, attacked.engine, attacked.verdict) == (40, 20, "refuse")


def test_where_the_twin_is_another_model_the_engine_is_asked_twice_as_much() -> None:
    near, far = (chosen_runs(Budget(), Pilot(epsilon=0.01, twin_agreement=share)) for share in (0.9995, 0.998))
    assert [parts[-1].spec.counted for parts in (near, far)] == [(500,), (1000,)]
    assert [part.source for part in attack_runs(None, quick=True)] == ["replay", "twin"]


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


def test_every_bound_changes_pixels_of_8_bit_images() -> None:
    images = torch.full((1, 3, 2, 2), 100 / 255)
    for epsilon in EPSILONS:
        assert (to_8_bit(images + epsilon, images) == 100 + round(255 * epsilon)).all()
    asked = [part.spec for part in attack_runs(EPSILONS[0]) if part.source in ("engine", "noise")]
    assert asked
    assert all(plan.eight_bit for plan in asked)


def test_the_engine_is_asked_about_the_very_images_that_it_is_judged_on() -> None:
    """By whole grey levels, so that rounding on the way to the engine changes nothing."""
    (plan,) = (part.spec for part in attack_runs(2 / 255, queries=20) if part.source == "engine")
    seen: list[torch.Tensor] = []

    def asked(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.cat([images.mean(1, keepdim=True), 0.5 - images.mean(1, keepdim=True)], 1)

    images = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    (found,) = attack(asked, plan, AttackBatch(images, torch.zeros(2, 8, 8, dtype=torch.int64), torch.arange(2)))
    assert any((queried - images).abs().max() > 0 for queried in seen[1:] if queried.shape == images.shape)
    for queried in (*seen, found.images):
        torch.testing.assert_close(queried * 255, (queried * 255).round(), rtol=0, atol=1e-4)


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
        attacked = attack_pool(case, engine, tmp_path / "work", ranks=OneOfTwo(1, 2))
        counts.append(len(list((tmp_path / "work").glob("*.npz"))))
    assert 0 < counts[0] < counts[1]
    for one, other in zip(attacked.pool, good[1].pool, strict=True):
        np.testing.assert_array_equal(one.engine, other.engine)
        np.testing.assert_array_equal(one.reference, other.reference)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(["pass", "pass"], "pass"), (["pass", "inconclusive"], "inconclusive"), (["inconclusive", "refuse"], "refuse")],
)
def test_the_worst_finding_decides(found: list[Any], expected: str) -> None:
    assert worst(found) == expected


def test_the_reports_say_the_same(
    passed: GateResult, good: tuple[GateJob, Measurements], speed: SpeedResult, tmp_path: Path
) -> None:
    markdown, page, suite = gate_markdown(passed), gate_html(passed), ElementTree.fromstring(gate_junit(passed))
    assert markdown.startswith("# Gate: pass\n\nPassed: the engine may stand in for its model: ")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(passed.findings)), "0", "0")
    for row in passed.threats:
        assert f"| {row.name} | {row.reference:.2f} | {row.engine:.2f} |" in markdown
        assert f'<td data-label="PyTorch model" class="n">{row.reference:.2f}</td>' in page
    assert page.index("may stand in for its model") < page.index("What was tested") < page.index("Attacks")
    assert "data:image" not in page
    assert "http" not in page  # nothing is loaded from elsewhere
    slow = speed.ratios[0].model_copy(update={"lower_quartile": 0.4, "upper_quartile": 0.6})
    refused = conclude(good[0], many(good[1], 4), speed.model_copy(update={"ratios": (slow,)}), LIMITS, seconds=1.0)
    suite = ElementTree.fromstring(gate_junit(refused))
    assert suite.get("failures") == "1"
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["latency"]
    assert "Refused: the engine is slower than its limit allows. Accuracy and robustness passed." in gate_html(refused)


def test_limits_are_strict(tmp_path: Path) -> None:
    precisions: tuple[Any, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision in precisions:
        assert read_thresholds(DEFAULT, precision).clean_margin > 0
    file = tmp_path / "limits.yaml"
    file.write_text(DEFAULT.read_text().replace("latency: 1.0", "latency: fast"))
    with pytest.raises(BenchError, match=r"fp32.latency: Input should be a valid number"):
        read_thresholds(file, "fp32")
    file.write_text("int8: {}")
    with pytest.raises(BenchError, match="Field required"):
        read_thresholds(file, "int8")
    file.write_text("{}")
    with pytest.raises(BenchError, match="has no entry for fp32"):
        read_thresholds(file, "fp32")
    with pytest.raises(BenchError, match="cannot be read"):
        read_thresholds(tmp_path / "none.yaml", "fp32")


def test_the_command(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: SpeedResult
) -> None:
    timed: list[object] = []
    served: list[Serving] = []

    def measured(*arguments: object, peak: Callable[[Serving], object], **options: object) -> SpeedResult:
        peak(Serving("engine", str(bundle.path), "cpu", 1, (1, 40, 48)))
        timed.append(arguments)
        return near(speed, others=2.0)  # not a quiet machine

    monkeypatch.setattr("ddcat_bench.gate.pipeline.measure", measured)
    monkeypatch.setattr("ddcat_bench.gate.pipeline.serving_peak", served.append)
    monkeypatch.setattr("ddcat_bench.gate.pipeline.physical_cores", lambda: 1)
    out = tmp_path / "gate"
    wide = tmp_path / "limits.yaml"
    wide.write_text(DEFAULT.read_text())
    words = ["gate", str(bundle.path), "--quick", "--thresholds", str(wide), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["ddcat", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3  # so few images decide nothing
    assert (len(timed), len(served)) == (3, 1)  # timed again, but its memory is taken once
    told = capsys.readouterr()
    assert told.out.startswith("# Gate: inconclusive")
    result = read_result(out / "gate.json", GateResult)
    assert told.err.endswith(f"{title(result)}\n")
    assert "latency could not be measured on this machine" in told.err
    assert {file.name for file in out.iterdir()} == {"gate.json", "gate.md", "gate.xml", "report.html"}
    why = [finding for finding in result.findings if finding.verdict != "pass"]
    assert why
    assert all(f"- **{finding.verdict}** " in told.out for finding in why)
    assert len(told.out.splitlines()) < 25  # the rest is in gate.md
    assert told.out == f"{gate_brief(result)}\n{out}: gate.json, gate.md, gate.xml, report.html\n"
    opened = open_bundle(bundle.path)
    found = read_passport(opened)
    assert found.passport == passport_of(opened, result)
    assert json.loads((bundle.path / "passport.json").read_text())["budget"] == "quick"
    assert (bundle.path / "report.html").read_bytes() == (out / "report.html").read_bytes()
    page = (out / "report.html").read_text()
    shown = page.count("data:image/webp")
    assert shown % 5 == 0
    assert shown < 2 * 3 * 5  # of three images, clean and attacked, those on which a label differs
    assert "No label differs on" in page
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.parametrize(
    "option", [("--steps", "5"), ("--queries", "50"), ("--query-stride", "2"), ("--seed", "1")], ids=" ".join
)
def test_what_a_quick_gate_has_no_use_for_is_refused(
    option: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddcat", "gate", str(tmp_path), "--quick", *option])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {' '.join(option)}: --quick runs BIM, n = 3,")


def test_a_split_without_labels_is_refused_before_anything_is_timed(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    ignored = replace(scenes, decode=lambda indices: np.full_like(indices, 255))
    told = rf"every pixel of the 5 images of {scenes.root}, val, is ignored: .*use a split with labels"
    with pytest.raises(BenchError, match=told):
        run_job(GateJob(bundle, checkpoint, ignored), LIMITS, tmp_path / "gate", repeats=10)
    GateJob(bundle, checkpoint, scenes).check_labels()


def test_a_graph_that_cannot_be_attacked_is_refused_before_anything_is_timed(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def antialias(inputs: Any, attributes: Any) -> Any:
        raise NotSupportedError("a form that only images show")

    monkeypatch.setitem(OPERATORS, "Resize", OPERATORS["Resize"]._replace(run=antialias))
    with pytest.raises(BenchError, match=r"does not support Resize at .* with a form that only images show"):
        run_job(GateJob(bundle, checkpoint, scenes), LIMITS, tmp_path / "gate", repeats=10)
    assert not (tmp_path / "gate").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(bundle: Bundle, tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        out = tmp_path / f"gate-{devices}"
        words = ["gate", str(bundle.path), "--quick", "--repeats", "10", "--jobs", str(devices), "--out", str(out)]
        line = [sys.executable, "-m", "ddcat", *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr  # few images
        found.append(read_result(out / "gate.json", GateResult))
    assert found[0].threats == found[1].threats
    assert found[0].members == found[1].members
