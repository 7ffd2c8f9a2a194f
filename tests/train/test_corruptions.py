"""Corruptions: equal to the published library where nothing is drawn, of its mean and deviation elsewhere."""

import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat_train.choices import CorruptionName
from ddcat_train.corruptions import CAPTURE, COMMON, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from ddcat_train.corruptions.arrays import U8, blur, enlarge, move_blur, sample
from ddcat_train.errors import CorruptionError

PUBLISHED = {**COMMON, **EXTRA}
DETERMINISTIC = (
    "defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate", "jpeg_compression",
)  # fmt: skip
ALIKE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "snow", "elastic_transform", "spatter")


@pytest.fixture(scope="module")
def peer() -> Callable[..., U8]:
    """The library `imagecorruptions`; numba, which it compiles one corruption with, is replaced by nothing."""
    if "numba" not in sys.modules:
        stub = ModuleType("numba")
        stub.njit = lambda *args, **options: lambda function: function  # type: ignore[attr-defined]
        sys.modules["numba"] = stub
    found = pytest.importorskip("imagecorruptions", reason="pip install --no-deps imagecorruptions-imaug; and scikit-image")
    corrupt_: Callable[..., U8] = found.corrupt
    return corrupt_


@pytest.fixture(scope="module")
def picture() -> U8:
    """Edges, smooth colours, grey and black: 96 x 128."""
    rows, columns = np.mgrid[:96, :128]
    image = np.stack([columns * 2, rows * 2.5, 255 - columns], axis=2)
    image[20:50, 30:70] = (200, 40, 90)
    image[60:80, 10:50] = 120
    image[5:15, 80:120] = 0
    return cv2.GaussianBlur(image.astype(np.uint8), (3, 3), 0.7)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_draws_nothing_is_the_published_image(peer: Callable[..., U8], picture: U8, name: str) -> None:
    for severity in SEVERITIES:
        ours, theirs = corrupt(picture, name, severity=severity, seed=0), peer(picture, severity, name)
        off = np.abs(ours.astype(int) - theirs)
        assert off.max() <= 1  # both cut what floats make of 100: 99.99... in one order of sums, 100 in another
        assert off.mean() < 0.3


def test_motion_blur_is_the_published_one_at_the_same_angle(
    peer: Callable[..., U8], picture: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    for severity in SEVERITIES:
        ours = corrupt(picture, "motion_blur", severity=severity, seed=severity)
        angle = np.random.default_rng(severity).uniform(-45, 45)
        monkeypatch.setattr(np.random, "uniform", lambda *bounds, angle=angle: angle)
        off = np.abs(ours.astype(int) - peer(picture, severity, "motion_blur"))
        assert off.max() <= 1
        assert off.mean() < 0.3


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_what_is_drawn_has_the_published_statistics(peer: Callable[..., U8], picture: U8, name: str, severity: int) -> None:
    np.random.seed(0)
    draws = 60 if name == "spatter" else 6  # drops are few and large
    ours = np.stack([corrupt(picture, name, severity=severity, seed=seed) for seed in range(draws)]).astype(float)
    theirs = np.stack([peer(picture, severity, name) for _ in range(draws)]).astype(float)
    far = [np.abs(one - picture).mean() for one in (ours, theirs)]
    assert ours.mean() == pytest.approx(theirs.mean(), abs=3)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
    assert far[0] == pytest.approx(far[1], rel=0.12, abs=0.5)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_glass_changes_places_where_the_library_copies(peer: Callable[..., U8], picture: U8, severity: int) -> None:
    """Its swap writes one of the two pixels twice, so that its images are a little rougher."""
    ours = corrupt(picture, "glass_blur", severity=severity, seed=0).astype(float)
    theirs = peer(picture, severity, "glass_blur", seed=0).astype(float)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=3)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
    assert 0.6 < np.abs(ours - picture).mean() / np.abs(theirs - picture).mean() < 1.4


def test_fog_and_frost_are_as_thick_as_the_published_ones(peer: Callable[..., U8], picture: U8) -> None:
    """One fog differs much from the next, and a photograph of frost from the other: the means of many are compared."""
    np.random.seed(0)
    for name, near in (("fog", 12), ("frost", 20)):
        ours = np.mean([corrupt(picture, name, severity=3, seed=seed) for seed in range(40)])
        theirs = np.mean([peer(picture, 3, name) for _ in range(40)])
        assert ours == pytest.approx(theirs, abs=near)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    size=st.tuples(st.integers(32, 70), st.integers(32, 70)),
    seed=st.integers(0, 2**32 - 1),
    content=st.sampled_from(["noise", "black", "white", "grey"]),
)
def test_any_image_stays_an_image_and_a_seed_repeats_it(
    name: str, severity: int, size: tuple[int, int], seed: int, content: str
) -> None:
    fills = {"black": 0, "white": 255, "grey": 100}
    random = np.random.default_rng(seed)
    image = (
        random.integers(0, 256, (*size, 3), np.uint8) if content == "noise" else np.full((*size, 3), fills[content], np.uint8)
    )
    before = image.copy()
    with np.errstate(all="raise"):
        first = corrupt(image, name, severity=severity, seed=seed)
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert np.array_equal(first, corrupt(image, name, severity=severity, seed=seed))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "name", sorted(set(CORRUPTIONS) - {"saturate", "spatter", "frost", "glass_blur", "resize_kernel", "decoder", "fog"})
)
def test_a_higher_severity_changes_more(picture: U8, name: str) -> None:
    """But for those whose severities differ in kind, and those that are drawn anew with much spread."""
    far = [
        np.mean([np.abs(corrupt(picture, name, severity=one, seed=seed).astype(int) - picture).mean() for seed in range(4)])
        for one in SEVERITIES
    ]
    assert all(after >= before - 0.05 for before, after in pairwise(far))
    assert far[-1] > far[0]


def test_the_lists_are_complete() -> None:
    assert (len(COMMON), len(EXTRA)) == (15, 4)
    assert all(len(one.settings) == len(SEVERITIES) for one in CORRUPTIONS.values())
    assert {*PUBLISHED, *CAPTURE} == set(CORRUPTIONS)
    assert get_args(CorruptionName) == tuple(CORRUPTIONS)


@pytest.mark.parametrize(
    ("name", "severity", "shape", "dtype", "says"),
    [
        ("rain", 1, (64, 64, 3), np.uint8, "there is no corruption 'rain': use one of gaussian_noise"),
        ("fog", 6, (64, 64, 3), np.uint8, "expected a severity of 1 to 5, got 6"),
        ("fog", 0, (64, 64, 3), np.uint8, "expected a severity of 1 to 5, got 0"),
        ("fog", 1, (64, 64), np.uint8, "got (64, 64) uint8"),
        ("fog", 1, (64, 64, 4), np.uint8, "got (64, 64, 4) uint8"),
        ("fog", 1, (31, 64, 3), np.uint8, "at least 32 pixels a side"),
        ("fog", 1, (64, 64, 3), np.float32, "got (64, 64, 3) float32"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(name: str, severity: int, shape: tuple[int, ...], dtype: type, says: str) -> None:
    with pytest.raises(CorruptionError) as refused:
        corrupt(np.zeros(shape, dtype), name, severity=severity, seed=0)
    assert says in str(refused.value)


def test_the_helpers_are_their_definitions() -> None:
    """Against sums that are written out."""
    random = np.random.default_rng(0)
    image = random.random((9, 11, 3))
    rows, columns = np.mgrid[:9, :11].astype(float)
    assert np.allclose(sample(image, rows, columns), image)
    half = sample(image, rows[:-1] + 0.5, columns[:-1])
    assert np.allclose(half, (image[:-1] + image[1:]) / 2)
    assert np.allclose(sample(image, rows - 1, columns)[0], image[0])  # mirrored at the border: row -1 is row 0
    assert np.allclose(enlarge(image, 1.0), image)
    assert np.allclose(blur(np.full((9, 11, 3), 0.25), 2.0), 0.25)
    moved = move_blur(image, 2, 1.5, 0.0)
    weights = np.exp(-(np.arange(5) ** 2) / (2 * 1.5**2))
    padded = np.concatenate([image, np.repeat(image[:, -1:], 4, axis=1)], axis=1)
    expected = sum(weight * padded[:, step : step + 11] for step, weight in enumerate(weights / weights.sum()))
    assert np.allclose(moved, np.asarray(expected))
