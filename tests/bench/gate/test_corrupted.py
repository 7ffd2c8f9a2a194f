"""Corruptions in the gate: engines that are right on clean and attacked images and wrong in the dark, or after a codec."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ddcat.engines import Engine, Outputs, open_engine
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements, attack_pool
from ddcat_bench.gate.pool import CODEC, CORRUPTED_SEVERITY, corrupted_runs
from ddcat_bench.gate.verdict import conclude
from ddcat_bench.gate.words import untested
from ddcat_bench.timing.results import SpeedResult
from tests.bench.gate_measurements import LIMITS, many

U8 = npt.NDArray[np.uint8]


def is_dark(image: U8, clean: list[U8]) -> bool:
    return bool(image.mean() < 0.7 * min(one.mean() for one in clean))


def is_from_jpeg(image: U8, clean: list[U8]) -> bool:
    """Compressed at a quality of 50 again, an image of JPEG at 50 hardly changes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    again = np.asarray(Image.open(file), dtype=np.int64)
    return bool(np.abs(again - image).mean() < 0.6)


class Wrong:
    """An engine that labels some images wrong."""

    def __init__(self, engine: Engine, when: Callable[[U8], bool], classes: int) -> None:
        self.engine, self.when, self.classes, self.hits = engine, when, classes, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def infer(self, images: U8) -> Outputs:
        outputs = self.engine.infer(images)
        hit = np.array([self.when(image) for image in images])
        self.hits += int(hit.sum())
        wrong = ((outputs.labels + 1) % self.classes).astype(np.uint8)
        return replace(outputs, labels=np.where(hit[:, None, None], wrong, outputs.labels))


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("when", "refused", "member"),
    [
        (is_dark, "mIoU, codec", "underexposed"),
        pytest.param(is_from_jpeg, "mIoU, codec", "jpeg", marks=pytest.mark.slow),
    ],
)
def test_an_engine_that_fails_in_the_dark_or_after_jpeg_is_refused(
    good: tuple[GateJob, Measurements],
    speed: SpeedResult,
    tmp_path: Path,
    when: Callable[[U8, list[U8]], bool],
    refused: str,
    member: str,
) -> None:
    job, _ = good
    clean = [job.dataset.read(index).image for index in range(job.images)]
    assert not any(when(image, clean) for image in clean)
    with open_engine(job.bundle, threads=1) as engine:
        planted = Wrong(engine, lambda image: when(image, clean), len(job.dataset.classes))
        measured = attack_pool(job, planted, tmp_path / "work")
    assert planted.hits
    result = conclude(job, many(measured, 4), speed, LIMITS, seconds=1.0)
    verdicts = {finding.name: finding.verdict for finding in result.findings}
    assert result.verdict == "refuse"
    assert {name for name, verdict in verdicts.items() if verdict == "refuse"} == {refused}
    assert verdicts["mIoU, clean"] == verdicts["mIoU, BIM, n = 3"] == "pass"
    [row] = [row for row in result.threats if f"mIoU, {row.name}" == refused]
    assert member in row.reason
    assert row.difference < -5
    loose = LIMITS.model_copy(update={"corrupted_margin": None})
    reported = conclude(job, many(measured, 4), speed, loose, seconds=1.0)
    assert reported.verdict == "pass"
    assert dict(untested(reported))["corruptions"].startswith("-")


def test_corruptions_that_have_a_limit_and_cannot_be_tried_leave_the_gate_inconclusive(
    good: tuple[GateJob, Measurements], speed: SpeedResult
) -> None:
    job, measured = good
    attacks = many(
        measured._replace(pool=[result for result in measured.pool if result.source not in ("corrupted", "codec")]), 4
    )
    result = conclude(job, attacks, speed, LIMITS, seconds=1.0)
    assert {finding.name for finding in result.findings if finding.verdict != "pass"} == {"corruptions"}
    assert result.verdict == "inconclusive"
    loose = LIMITS.model_copy(update={"corrupted_margin": None})
    assert conclude(job, attacks, speed, loose, seconds=1.0).verdict == "pass"


def test_the_worst_five_of_the_reference_are_tried_on_the_engine(good: tuple[GateJob, Measurements]) -> None:
    _, measured = good
    assert len(measured.pilot.corruptions) == 5
    tried = [(result.source, result.label) for result in measured.pool if result.source in ("corrupted", "codec")]
    assert tried == [
        *(("corrupted", f"{name}, severity {CORRUPTED_SEVERITY}") for name in measured.pilot.corruptions),
        *(("codec", f"{name}, severity {severity}") for name, severity in CODEC),
    ]
    assert corrupted_runs(()) == ()
