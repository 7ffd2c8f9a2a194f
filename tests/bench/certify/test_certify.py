"""Certificates: the statistics by written-out sums and by simulation, the claim on a model whose answer is known, bad input."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat_bench import judged as judging
from ddcat_bench.certify.measure import CertifyJob, certify_image, measure
from ddcat_bench.certify.results import CertificateResult
from ddcat_bench.certify.run import run_certify
from ddcat_bench.certify.smoothing import ABSTAIN, certified_labels, holm, p_values, radius
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset

SIGMA, TAU, ALPHA = 0.25, 0.75, 0.001


def test_the_p_value_is_the_tail_of_the_binomial() -> None:
    samples = 30
    for hits in (0, 1, 15, 29, 30):
        tail = sum(math.comb(samples, k) * TAU**k * (1 - TAU) ** (samples - k) for k in range(hits, samples + 1))
        assert p_values(np.array([hits]), samples=samples, tau=TAU)[0] == pytest.approx(min(tail, 1))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([0.5, 0.05, 0.001]))
def test_holm_steps_down_until_one_fails(values: list[float], alpha: float) -> None:
    """Word for word: the smallest at alpha / M, the next at alpha / (M - 1), and none behind the first that fails."""
    rejected = set()
    order = sorted(range(len(values)), key=lambda place: values[place])
    for rank, place in enumerate(order):
        if values[place] > alpha / (len(values) - rank):
            break
        rejected.add(place)
    assert set(np.flatnonzero(holm(np.array(values), alpha)).tolist()) == rejected


def test_wrong_certificates_are_as_rare_as_promised() -> None:
    """Pixels whose probability is tau itself: whatever is certified there is wrong."""
    random, samples, alpha, rounds = np.random.default_rng(0), 100, 0.2, 2000
    hits = random.binomial(samples, TAU, (rounds, 50))
    wrong = sum(holm(p_values(one, samples=samples, tau=TAU), alpha).any() for one in hits)
    assert wrong / rounds <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / rounds)
    assert wrong > 0


def test_the_radius_is_that_of_the_paper() -> None:
    assert radius(0.25, 0.75) == pytest.approx(0.1686, abs=1e-4)
    assert radius(0.5, 0.5) == 0


class Threshold:
    """Class 1 where red is above the middle: under noise its probability is known, Phi((x - 0.5) / sigma)."""

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        return (images[..., 0] > 127).astype(np.int64)


def threshold_job(samples: int = 300) -> CertifyJob:
    dataset = SimpleNamespace(classes=("dark", "red"), size=lambda index: (32, 64))
    return CertifyJob(Threshold(), "0" * 64, cast("Dataset", dataset), sigma=SIGMA, samples=samples, tau=TAU, alpha=ALPHA)


def test_what_is_certified_of_a_linear_model_is_right() -> None:
    """Each pixel's distance to the threshold is the L2 norm that changes the smoothed label: never below the radius."""
    job = threshold_job()
    levels = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (32, 1))
    image = np.stack([levels] * 3, axis=2)
    smoothed, certified = certify_image(job, image, seed=0)
    distance = (levels - 127.5) / 255
    sure = certified != ABSTAIN
    assert np.array_equal(certified[sure], smoothed[sure])
    assert np.array_equal(smoothed[sure], (distance > 0)[sure])
    assert (np.abs(distance[sure]) >= radius(SIGMA, TAU)).all()
    assert sure[np.abs(distance) > 0.4].all()  # Phi(1.6) is 0.945: far above tau
    assert not sure[np.abs(distance) < 0.15].any()


def test_no_attack_within_the_radius_changes_a_certified_pixel() -> None:
    """All of the norm spent on one pixel, against its class, is the strongest attack there is on this model."""
    job = threshold_job()
    image = np.full((32, 64, 3), 127, np.uint8)
    image[..., 0] = np.where(np.arange(64) < 32, 30, 225)
    _, certified = certify_image(job, image, seed=1)
    assert (certified != ABSTAIN).mean() > 0.95
    budget = radius(SIGMA, TAU)
    for row, column in ((3, 5), (20, 50)):
        x = image[row, column, 0] / 255
        attacked = x + budget if x < 0.5 else x - budget
        chance = NormalDist().cdf((attacked - 127.5 / 255) / SIGMA)
        assert (chance > 0.5) == (certified[row, column] == 1)


def test_fewer_samples_certify_less_and_never_wrongly() -> None:
    hits, chosen = np.array([[100, 95, 80, 10]]), np.array([[1, 2, 3, 4]], np.uint8)
    assert certified_labels(chosen, hits, samples=100, tau=TAU, alpha=ALPHA).tolist() == [[1, 2, ABSTAIN, ABSTAIN]]


def test_a_checkpoint_and_its_engine_are_certified_alike_and_resume(
    checkpoint: Checkpoint, make_bundle: Callable, make_engine: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"sigma": 0.02, "samples": 60, "max_images": 2}
    result = run_certify(checkpoint, tmp_path / "model", **options)
    assert read_result(tmp_path / "model/certificate.json", CertificateResult) == result
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "certificate.json", "certificate.md", "certified.png",
    ]  # fmt: skip
    assert 0 < result.certified_accuracy <= result.clean_accuracy
    assert result.certified_miou <= result.smoothed_miou
    assert result.radius == pytest.approx(radius(0.02, 0.75))
    monkeypatch.setattr(judging, "open_engine", make_engine)
    engine = run_certify(make_bundle(), tmp_path / "engine", **options)
    assert (engine.certified_miou, engine.abstained) == (result.certified_miou, result.abstained)


def test_an_interrupted_measurement_continues(scenes: Dataset, tmp_path: Path) -> None:
    calls = 0

    def predict(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.integer]:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return (images[..., 0] > 127).astype(np.int64)

    job = CertifyJob(predict, "0" * 64, scenes, sigma=0.1, samples=60)
    with pytest.raises(KeyboardInterrupt):
        measure(job, tmp_path / "work")
    seen: list[int] = []
    again = measure(job, tmp_path / "work", seen.append)
    whole = measure(CertifyJob(Threshold(), "0" * 64, scenes, sigma=0.1, samples=60), tmp_path / "whole")
    assert sum(seen) == job.labelled
    assert np.array_equal(again.certified, whole.certified)
    assert (again.labelled, again.abstained) == (whole.labelled, whole.abstained)


@pytest.mark.parametrize(
    ("sigma", "samples", "says"),
    [
        (0.0, 100, "--sigma 0: expected a deviation above 0"),
        (-1.0, 100, "--sigma -1: expected"),
        (math.nan, 100, "--sigma nan: expected"),
        (3.0, 100, "--sigma 3: expected"),
        (0.25, 1, "--samples 1: no pixel of 1920 could be certified"),
        (0.25, 50, "use 51 or more"),
    ],
)
def test_bad_input_is_refused_in_one_line(scenes: Dataset, sigma: float, samples: int, says: str) -> None:
    with pytest.raises(BenchError) as refused:
        CertifyJob(Threshold(), "0" * 64, scenes, sigma=sigma, samples=samples)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
