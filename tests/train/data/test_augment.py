from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat_train import imagenet
from ddcat_train.data import AUGMENTATIONS, corrupted
from ddcat_train.data.augment import Augment, paper, plain
from ddcat_train.data.dataset import Sample

HEIGHT, WIDTH = 48, 60


def coordinates() -> Sample:
    """A pixel's column is its red and twice its row its green; its label is its column."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([4 * columns, 4 * rows, np.zeros_like(rows)], -1).astype(np.uint8)
    return Sample(image, columns.astype(np.uint8), "coordinates")


class Scripted:
    """Stands for a generator: gives the outcomes of the coins in their order, and the lowest or highest of every range."""

    def __init__(self, coins: list[bool], *, highest: bool = False) -> None:
        self.coins = coins
        self.highest = highest

    def uniform(self, low: float, high: float) -> float:
        return high if self.highest else low

    def random(self) -> float:
        return 0.1 if self.coins.pop(0) else 0.9

    def integers(self, end: int) -> int:
        return end - 1 if self.highest else 0


def augmented(augment: Augment, sample: Sample, generator: object) -> tuple[np.ndarray, np.ndarray]:
    return augment(sample, generator)  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "coins"), [(paper, 3), (plain, 1)])
def test_identity_parameters_give_the_sample(make: Callable[..., Augment], coins: int) -> None:
    sample = coordinates()
    image, labels = augmented(make(crop=(HEIGHT, WIDTH), scale=(1, 1)), sample, Scripted([False] * coins))
    assert image.dtype == np.float32
    assert np.array_equal(np.rint(image * 255), sample.image)
    assert np.array_equal(labels, sample.labels)


def test_flip_and_crop_move_image_and_labels_together() -> None:
    sample = coordinates()
    image, labels = augmented(plain(crop=(20, 30), scale=(1, 1)), sample, Scripted([True], highest=True))
    assert np.array_equal(np.rint(image * 255), sample.image[-20:, 29::-1])
    assert np.array_equal(labels, sample.labels[-20:, 29::-1])


def test_padding_is_centred_and_the_mean_and_ignored() -> None:
    sample = coordinates()
    image, labels = augmented(plain(crop=(HEIGHT + 7, WIDTH + 4), scale=(1, 1)), sample, Scripted([False]))
    inner = np.zeros(labels.shape, bool)
    inner[3 : 3 + HEIGHT, 2 : 2 + WIDTH] = True
    assert np.array_equal(np.rint(image[inner] * 255), sample.image.reshape(-1, 3))
    assert np.array_equal(labels[inner], sample.labels.ravel())
    assert np.allclose(image[~inner], imagenet.MEAN)
    assert (labels[~inner] == 255).all()


def test_rotation_turns_image_and_labels_together_and_fills_with_the_mean() -> None:
    whole = paper(crop=(HEIGHT, WIDTH), scale=(1, 1))
    image, labels = augmented(whole, coordinates(), Scripted([True, False, False], highest=True))
    row, column = 30, 20  # turned by +10 degrees (anticlockwise to the eye) about the centre, it shows this source pixel:
    cosine, sine = np.cos(np.pi / 18), np.sin(np.pi / 18)
    across, down = column - WIDTH / 2, row - HEIGHT / 2
    source = np.array([WIDTH / 2 + cosine * across - sine * down, HEIGHT / 2 + sine * across + cosine * down])
    assert np.allclose(image[row, column, :2] * 255 / 4, source, atol=0.05)
    assert labels[row, column] == np.rint(source[0])
    assert labels[0, 0] == 255
    assert np.allclose(image[0, 0], imagenet.MEAN)
    known = cv2.erode((labels != 255).astype(np.uint8), np.ones((3, 3)), borderValue=0) > 0  # where no mean is mixed in
    assert known.sum() > 1500
    assert np.abs(image[known][:, 0] * 255 / 4 - labels[known]).max() <= 0.55  # nearest: half a pixel


def test_blur_is_5x5_and_of_the_image_alone() -> None:
    sample = Sample(np.zeros((21, 21, 3), np.uint8), np.arange(441, dtype=np.int64).reshape(21, 21).astype(np.uint8) % 5, "dot")
    sample.image[10, 10] = 255
    image, labels = augmented(paper(crop=(21, 21), scale=(1, 1)), sample, Scripted([False, True, False]))
    seen = np.argwhere(image[..., 0] > 0)
    assert seen.min(0).tolist() == [8, 8]
    assert seen.max(0).tolist() == [12, 12]
    assert np.isclose(image[..., 0].sum(), 1, atol=1e-5)
    assert np.array_equal(labels, sample.labels)


@given(
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    scale=st.tuples(st.floats(0.1, 1), st.floats(1, 2)),
)
@settings(max_examples=40, deadline=None)
def test_labels_are_never_made_up(
    name: str, seed: int, size: tuple[int, int], crop: tuple[int, int], scale: tuple[float, float]
) -> None:
    generator = np.random.default_rng(seed)
    few = np.array([0, 7, 19, 255], np.uint8)  # between them lie values that interpolation would give
    sample = Sample(generator.integers(0, 256, (*size, 3)).astype(np.uint8), generator.choice(few, size), "noise")
    augment = AUGMENTATIONS[name](crop=crop, scale=scale)
    image, labels = augment(sample, np.random.default_rng(seed))
    assert image.shape == (*crop, 3)
    assert image.dtype == np.float32
    assert labels.shape == crop
    assert labels.dtype == np.uint8
    assert image.min() >= 0
    assert image.max() <= 1
    assert set(np.unique(labels)) <= set(np.unique(sample.labels)) | {255}
    again, labels_again = augment(sample, np.random.default_rng(seed))
    assert np.array_equal(image, again)
    assert np.array_equal(labels, labels_again)


def test_scales_and_coins_are_drawn_as_often_as_they_should() -> None:
    """By their traces: a flip turns the columns round, a rotation tilts the rows; each comes half of the time."""
    sample = coordinates()
    flips = tilts = 0
    for seed in range(400):
        image, _ = paper(crop=(HEIGHT, WIDTH), scale=(1, 1))(sample, np.random.default_rng(seed))
        middle = image[HEIGHT // 2, WIDTH // 4 : 3 * WIDTH // 4]
        flips += middle[0, 0] > middle[-1, 0]
        tilts += abs(middle[0, 1] - middle[-1, 1]) > 1e-4
    assert 160 <= flips <= 240
    assert 160 <= tilts <= 240


@pytest.mark.parametrize(("crop", "scale"), [((0, 5), (1, 1)), ((5, 5), (0, 1)), ((5, 5), (2, 1))])
def test_wrong_parameters_are_refused(crop: tuple[int, int], scale: tuple[float, float]) -> None:
    for make in AUGMENTATIONS.values():
        with pytest.raises(ValueError, match=r"crop|scale"):
            make(crop=crop, scale=scale)


def test_a_share_of_the_crops_is_corrupted_and_the_same_seed_repeats_it() -> None:
    generator = np.random.default_rng(0)
    sample = Sample(generator.integers(0, 256, (40, 40, 3)).astype(np.uint8), np.zeros((40, 40), np.uint8), "noise")
    bare = paper(crop=(33, 33), scale=(1, 1))
    assert corrupted(bare, (), share=0.5) is bare
    augment = corrupted(bare, ("contrast", "gaussian_noise"), share=0.25)
    changed = 0
    for seed in range(200):
        image, labels = augment(sample, np.random.default_rng(seed))
        plain_image, plain_labels = bare(sample, np.random.default_rng(seed))
        assert np.array_equal(labels, plain_labels)
        assert (image.shape, image.dtype) == (plain_image.shape, np.float32)
        assert np.array_equal(image, augment(sample, np.random.default_rng(seed))[0])
        changed += not np.array_equal(image, plain_image)
    assert 30 <= changed <= 70
