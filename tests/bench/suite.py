"""A whole suite of attacks in one call."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat_bench.attack.aggregate import aggregate
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.rank_work import attack_rank_work, probe_once
from ddcat_bench.attack.results import AttackResult, AttackRow, GradientShares, Probe, ProbePoint
from ddcat_bench.work_units import open_units


def quiet_probe(*given: Any, images: int = 6, **options: Any) -> Probe:
    """What a probe finds of a sound model, without its hundreds of forwards."""
    measured = (("clean", 0.0, 0, 0.4), ("PGD", 8 / 255, 5, 0.2), ("PGD", 8 / 255, 20, 0.1), ("CosPGD", 64 / 255, 20, 0.0))
    points = tuple(ProbePoint(name=n, epsilon=e, steps=s, miou=m, pixel_accuracy=m) for n, e, s, m in measured)  # type: ignore[arg-type]
    gradients = GradientShares(zero_images=0, non_finite_images=0, zero_pixels=0)
    return Probe(images=images, seed=0, points=points, gradients=gradients, seconds=0)


def row_of(result: AttackResult, label: str, *, eight_bit: bool = False) -> AttackRow:
    row = result.find(label, eight_bit=eight_bit)
    assert row is not None, label
    return row


def run_suite(
    evaluation: AttackJob,
    *,
    work: Path | None = None,
    advance: Callable[[int], None] = lambda forwards: None,
    probed: bool = False,
) -> AttackResult:
    """Attack in this process alone; what is kept in `work` is not done again. The probe is made where it is asked for."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if not probed:
            patch.setattr("ddcat_bench.attack.rank_work.run_probe", quiet_probe)
        units = open_units(work or Path(folder), evaluation.identity())
        batches = attack_rank_work(evaluation, units, advance=advance)
        return aggregate(evaluation, units, batches, probe_once(evaluation, units))
