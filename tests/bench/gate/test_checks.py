"""What the gate decides, and which attacks it asks for, from numbers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.bootstrap import Scheme
from ddcat_bench.errors import BenchError
from ddcat_bench.gate import checks
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.checks import check_latency, needs_quiet
from ddcat_bench.gate.disagreement import MARGINS, Disagreement
from ddcat_bench.gate.measurements import Pilot, chosen_runs
from ddcat_bench.gate.pool import EPSILONS, PoolResult, attack_runs
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_train.pixels import to_8_bit
from tests.bench.gates import speed_of, turns

LIMITS = read_thresholds(DEFAULT, "fp32")


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
        assert "(replay: PGD, n = 10) leaves 30.00" in alarm.evidence
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


def test_an_engine_that_its_own_graph_breaks_is_refused() -> None:
    """A replay alone would have seen nothing."""
    scheme = Scheme("images", np.arange(40))
    pool = [judged("replay", 70, 70, "clean", 0.0), judged("replay", 40, 40), judged("twin", 20, 45)]
    _, attacked = checks.check_threats(pool, scheme, LIMITS)
    assert (attacked.reference, attacked.engine, attacked.verdict) == (40, 20, "refuse")


def test_where_the_twin_is_another_model_the_engine_is_asked_twice_as_much() -> None:
    near, far = (chosen_runs(Budget(), Pilot(epsilon=0.01, twin_agreement=share, corruptions=())) for share in (0.9995, 0.998))
    assert [parts[-1].spec.counted for parts in (near, far)] == [(500,), (1000,)]
    assert [part.source for part in attack_runs(None, Budget("quick"))] == ["replay", "twin"]


def test_every_bound_changes_pixels_of_8_bit_images() -> None:
    images = torch.full((1, 3, 2, 2), 100 / 255)
    for epsilon in EPSILONS:
        assert (to_8_bit(images + epsilon, images) == 100 + round(255 * epsilon)).all()
    asked = [part.spec for part in attack_runs(EPSILONS[0]) if part.source in ("engine", "noise")]
    assert asked
    assert all(plan.eight_bit for plan in asked)


def test_the_engine_is_asked_about_the_very_images_that_it_is_judged_on() -> None:
    """By whole grey levels, so that rounding on the way to the engine changes nothing."""
    (plan,) = (part.spec for part in attack_runs(2 / 255, Budget(queries=20)) if part.source == "engine")
    seen: list[torch.Tensor] = []

    def asked(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.cat([images.mean(1, keepdim=True), 0.5 - images.mean(1, keepdim=True)], 1)

    images = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    (found,) = attack(asked, plan, AttackBatch(images, torch.zeros(2, 8, 8, dtype=torch.int64), torch.arange(2)))
    assert any((queried - images).abs().max() > 0 for queried in seen[1:] if queried.shape == images.shape)
    for queried in (*seen, found.images):
        torch.testing.assert_close(queried * 255, (queried * 255).round(), rtol=0, atol=1e-4)


def test_limits_are_strict(tmp_path: Path) -> None:
    precisions: tuple[Any, ...] = ("fp32", "fp16", "bf16", "int8")
    for precision in precisions:
        assert read_thresholds(DEFAULT, precision).clean_margin > 0
    file = tmp_path / "limits.yaml"
    file.write_text(DEFAULT.read_text().replace("latency: 1.0", "latency: fast"))
    with pytest.raises(BenchError, match=r"fp32.latency: Input should be a valid number"):
        read_thresholds(file, "fp32")
    file.write_text(DEFAULT.read_text().replace("latency: 1.0", "latency: 1.0, latency: 9.0", 1))
    with pytest.raises(BenchError, match="cannot be read: latency occurs twice"):
        read_thresholds(file, "fp32")
    file.write_text(DEFAULT.read_text().replace("agreement:", "agreemnt:"))
    with pytest.raises(BenchError, match=r"limits\.yaml: unknown key fp32\.agreemnt: did you mean agreement\?$"):
        read_thresholds(file, "fp32")
    file.write_text("int8: {}")
    with pytest.raises(BenchError, match="Field required"):
        read_thresholds(file, "int8")
    file.write_text("{}")
    with pytest.raises(BenchError, match="has no entry for fp32"):
        read_thresholds(file, "fp32")
    with pytest.raises(BenchError, match="cannot be read"):
        read_thresholds(tmp_path / "none.yaml", "fp32")


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
def test_the_worst_turn_is_held_against_the_limit_first(shares: tuple[float, ...], others: float, verdict: str) -> None:
    measured = turns(speed_of("a", 0.1), *(share for share in shares for _ in range(10))).model_copy(update={"others": others})
    finding = check_latency(measured, LIMITS)
    assert finding is not None
    assert finding.verdict == verdict, finding
    calm = measured.stable and not measured.disturbed
    assert needs_quiet(measured, LIMITS) == (verdict == "inconclusive" and not calm)


def test_one_slow_turn_of_many_decides_nothing_on_a_quiet_machine() -> None:
    finding = check_latency(turns(speed_of("a", 0.1), *[0.5] * 29, 1.5), LIMITS)
    assert finding is not None
    assert finding.verdict == "pass"
