"""The statistics of the gate: against literal versions of themselves, and against simulated data whose truth is known."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat.metrics import Counts, miou
from ddcat_bench.bootstrap import BLOCK, Scheme, draw, miou_of_draws, scheme_of, sequence_in
from ddcat_bench.gate.equivalence import Comparison, Interval, compare_pool, paired_interval, verdict_of

IMAGES = Scheme("images", np.arange(40))


def independent(images: int) -> Scheme:
    return Scheme("images", np.arange(images))


def blocks(images: int, size: int = BLOCK) -> Scheme:
    return Scheme("blocks", np.arange(images), size)


def some_counts(seed: int, images: int = 40, classes: int = 4) -> Counts:
    return np.random.default_rng(seed).integers(1, 500, (images, classes, 3))


@given(st.integers(10, 60), st.sampled_from(["images", "blocks"]), st.integers(1, 13), st.integers(0, 5))
def test_every_draw_is_of_as_many_images(images: int, kind: str, block: int, seed: int) -> None:
    scheme = blocks(images, block) if kind == "blocks" else independent(images)
    often = draw(scheme, draws=20, seed=seed)
    assert often.shape == (20, images)
    assert (often.sum(1) == images).all()
    assert (often >= 0).all()
    np.testing.assert_array_equal(often, draw(scheme, draws=20, seed=seed))


def test_blocks_are_of_frames_that_follow_each_other_round_the_end() -> None:
    often = draw(blocks(40, 10), draws=2000, seed=1)
    assert often.mean() == 1
    assert abs(often.mean(0) - 1).max() < 0.1  # the ends as often as the middle
    with_first = often[often[:, 0] > 0]
    neighbours, far = (with_first[:, place].mean() for place in (1, 20))
    assert neighbours > 1.3
    assert far < 1.1
    assert with_first[:, 39].mean() > 1.3  # a circle
    whole = draw(blocks(40, 40), draws=5)
    assert (whole == 1).all()


def test_clips_are_drawn_whole() -> None:
    names = [f"clip{clip:02}_{frame}" for clip in range(12) for frame in range(3)]
    scheme = scheme_of("camvid", names)
    assert (scheme.kind, scheme.units) == ("clips", 12)
    often = draw(scheme, draws=50).reshape(50, 12, 3)
    assert (often == often[:, :, :1]).all()
    one_clip = scheme_of("camvid", [f"0016E5_{frame:05}" for frame in range(101)])
    assert (one_clip.kind, one_clip.units) == ("blocks", 10)
    assert scheme_of("voc", ["2007_000033", "2007_000042"]).kind == "images"


def test_the_paired_interval_is_that_of_a_literal_bootstrap() -> None:
    first, second = some_counts(0), some_counts(1)
    often = draw(IMAGES, draws=300, seed=4)

    def drawn(counts: Counts, times: npt.NDArray[np.float64]) -> float:
        return miou(sum(int(n) * image for n, image in zip(times, counts, strict=True)))

    differences = [100 * (drawn(second, times) - drawn(first, times)) for times in often]
    found = paired_interval(first, second, IMAGES, draws=300, seed=4)
    assert found == pytest.approx(tuple(np.quantile(differences, (0.05, 0.95))))


def test_the_same_counts_differ_by_nothing() -> None:
    pool = np.stack([some_counts(0), some_counts(1)])
    found = compare_pool(pool, pool, IMAGES, draws=200)
    assert (found.difference, found.interval) == (0, (0, 0))
    assert verdict_of(found, IMAGES, margin=0.05)[0] == "pass"


def test_each_model_meets_what_is_worst_for_it() -> None:
    weak, strong = np.array([[[5, 50, 50]] * 2]), np.array([[[90, 5, 5]] * 2])  # (1, 2, 3) each: one image, two classes
    reference, engine = np.stack([weak, strong]), np.stack([strong, weak])  # (A, I, K, 3)
    found = compare_pool(np.repeat(reference, 20, 1), np.repeat(engine, 20, 1), independent(20), draws=50)
    assert found.reference == found.engine == pytest.approx(100 * 5 / 105)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "why"),
    [
        (-0.04, 0.05, "pass", "within"),
        (-0.5, -0.06, "refuse", "worse"),
        (-0.06, 0.01, "inconclusive", "more images"),
        (-0.2, 0.2, "inconclusive", "more images"),
        (0.06, 0.2, "inconclusive", "masking"),
        (math.nan, 0.0, "refuse", "not a finite number"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str, why: str) -> None:
    found, reason = verdict_of(Comparison(50, 50, 0, Interval(low, high), {}, np.zeros((1, 2))), IMAGES, margin=0.05)
    assert found == verdict
    assert why in reason


def test_too_few_units_decide_nothing() -> None:
    good = Comparison(50, 50, 0, Interval(0, 0), {}, np.zeros((1, 2)))
    assert verdict_of(good, independent(9), margin=1)[0] == "inconclusive"
    assert verdict_of(good, independent(1), margin=1)[1] == "1 image is too few to decide: use 10 or more"
    assert verdict_of(good, independent(2), margin=1)[1] == "2 images are too few to decide: use 10 or more"
    assert verdict_of(good, blocks(99), margin=1)[0] == "inconclusive"
    assert verdict_of(good, blocks(100), margin=1)[0] == "pass"


class World:
    """
    Images of an endless data set, in which the truth is known: two classes, a reference, and an engine that flips labels.

    Each image has its own share of right pixels, and its own share of labels that the engine turns wrong or right; with
    `memory` they wander from image to image, as in a video.
    """

    def __init__(self, *, loss: float, memory: float) -> None:
        self.loss, self.memory = loss, memory

    def draw(self, images: int, seed: int) -> tuple[Counts, Counts]:
        random = np.random.default_rng(seed)
        noise = random.normal(size=(images, 2))
        for image in range(1, images):
            noise[image] = self.memory * noise[image - 1] + math.sqrt(1 - self.memory**2) * noise[image]
        right = 0.8 + 0.05 * noise[:, :1]  # of each image
        lost = self.loss * (1 + 0.8 * noise[:, 1:])
        shares = (right, right * (1 - lost))
        pixels = 10_000
        first, second = (np.rint(pixels * np.clip(np.repeat(share, 2, 1), 0, 1)).astype(np.int64) for share in shares)
        return tuple(np.stack([r, (pixels - r)[:, ::-1], pixels - r], axis=2) for r in (first, second))  # type: ignore[return-value]

    def truth(self) -> float:
        first, second = self.draw(200_000, 99)
        return 100 * (miou(second.sum(0)) - miou(first.sum(0)))


def simulate(world: World, scheme: Scheme, trials: int) -> list[Interval]:
    images = len(scheme.groups)
    return [paired_interval(*world.draw(images, seed), scheme, draws=400, seed=seed) for seed in range(trials)]


@pytest.mark.parametrize(
    ("memory", "scheme", "least"),
    [
        (0.0, independent(60), 0.85),
        (0.0, blocks(100), 0.80),  # ten blocks see a little too little variance
        (0.8, blocks(200), 0.78),
    ],
)
@pytest.mark.parametrize("trials", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_interval_covers_the_truth(memory: float, scheme: Scheme, least: float, trials: int) -> None:
    world = World(loss=0.01, memory=memory)
    truth = world.truth()
    covered = np.mean([low <= truth <= high for low, high in simulate(world, scheme, trials)])
    assert least - 2 * math.sqrt(0.1 / trials) <= covered <= 0.96


def test_frames_of_a_video_drawn_one_by_one_would_cover_too_little() -> None:
    world = World(loss=0.01, memory=0.8)
    truth = world.truth()
    single, grouped = (
        np.mean([low <= truth <= high for low, high in simulate(world, scheme, 60)])
        for scheme in (independent(200), blocks(200))
    )
    assert single < 0.65 < grouped


@pytest.mark.parametrize(("memory", "scheme", "most"), [(0.0, independent(60), 0.08), (0.8, blocks(200), 0.14)])
@pytest.mark.parametrize("trials", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_engine_that_is_worse_by_the_margin_seldom_passes(memory: float, scheme: Scheme, most: float, trials: int) -> None:
    world = World(loss=0.01, memory=memory)
    margin = -world.truth()
    assert margin > 0.5
    passed = np.mean([-margin <= low and high <= margin for low, high in simulate(world, scheme, trials)])
    assert passed <= most + 2 * math.sqrt(0.05 / trials)


def test_what_is_equal_passes_and_what_is_worse_is_refused_given_enough_images() -> None:
    equal, worse = World(loss=0.0, memory=0.0), World(loss=0.03, memory=0.0)
    scheme = independent(100)
    for world, expected in ((equal, "pass"), (worse, "refuse")):
        first, second = world.draw(100, 0)
        assert verdict_of(compare_pool(first[None], second[None], scheme, draws=500), scheme, margin=0.2)[0] == expected


def test_an_unpaired_interval_would_see_nothing() -> None:
    """200 images and one percent of flips: the paired interval is narrow, those of either model alone are not."""
    first, second = World(loss=0.01, memory=0.0).draw(200, 5)
    low, high = paired_interval(first, second, independent(200), draws=1000)
    alone = 100 * miou_of_draws(draw(independent(200), draws=1000), first)
    assert high - low < 0.25 * (np.quantile(alone, 0.95) - np.quantile(alone, 0.05))


@pytest.mark.parametrize(
    ("data", "names", "found"),
    [
        ("folder", [f"frame_{place:04}" for place in range(40)], ("frame_0000", "frame_0001")),
        ("folder", [f"seq_{place:06}" for place in range(100, 160)], ("seq_000100", "seq_000101")),
        ("folder", [f"0001TP_{place:06}" for place in range(6690, 8000, 30)], ("0001TP_006690", "0001TP_006720")),
        ("folder", [f"{place:06}" for place in range(40)], ("000000", "000001")),
        ("folder", [f"drive{place % 3}-{place // 3:03}_rgb" for place in range(60)], ("drive0-000_rgb", "drive0-001_rgb")),
        ("folder", [f"{place:05}" for place in sorted(np.random.default_rng(0).permutation(400)[:40])], True),  # a random split
        ("voc", [f"clip_{place:04}" for place in range(40)], True),  # a data set in the layout of VOC
        ("voc", [f"2007_{place:06}" for place in range(40)], None),  # VOC's own names
        ("folder", ["munich", "paris", "rome", "oslo"] * 5, None),
        (
            "folder",
            [f"{place:012}" for place in sorted(np.random.default_rng(0).integers(0, 600_000, 100))],
            None,
        ),  # numbers, far apart
        ("scenes", [f"val_{place:05}" for place in range(40)], None),  # generated, each by itself
        ("cityscapes", [f"frankfurt_000000_{place:06}" for place in range(40)], None),
        ("camvid", [f"0016E5_{place:05}" for place in range(101)], None),  # drawn in blocks already
    ],
)
def test_names_of_frames_are_known(data: str, names: list[str], found: Any) -> None:
    seen = sequence_in(data, names)
    assert (seen is not None) == (found is not None), seen
    if isinstance(found, tuple):
        assert seen == found
    assert sequence_in(data, names, "(.+)") is None  # whoever says it knows it


def test_clips_are_named_by_the_data_set_or_the_user() -> None:
    names = [f"drive{place // 20}_{place:04}" for place in range(400)]
    named = scheme_of("folder", names, r"(.+)_\d+")
    assert (named.kind, named.units) == ("clips", 20)
    assert scheme_of("folder", names, r"drive\d+").units == 20  # no group: all that it matches
    assert scheme_of("folder", names).kind == "images"
    assert scheme_of("folder", names, "(.+)").kind == "images"  # each a clip of its own
    few = scheme_of("folder", names[:100], r"(.+)_\d+")
    assert (few.kind, few.units) == ("clips", 5)  # no blocks in their place, which would pass for more than they are
    good = Comparison(50, 50, 0, Interval(0, 0), {}, np.zeros((1, 2)))
    assert verdict_of(good, few, margin=1)[0] == "inconclusive"
    assert verdict_of(good, named, margin=1)[0] == "pass"


def test_the_interval_is_by_clips_where_they_are_named() -> None:
    world, images = World(loss=0.01, memory=0.95), 400
    names = [f"drive{place // 20}_{place:04}" for place in range(images)]
    reference, engine = world.draw(images, 3)
    single, clips = (paired_interval(reference, engine, scheme_of("folder", names, pattern)) for pattern in (None, r"(.+)_\d+"))
    assert clips.high - clips.low > 1.5 * (single.high - single.low)
