"""Blurs of lens, glass and motion."""

import cv2
import numpy as np

from ddcat_train.corruptions.arrays import F64, U8, blur, enlarge, move_blur, to_bytes, to_unit

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"]

_GRID = 8  # half the side of the smallest kernel of a lens


def gaussian_blur(image: U8, _: np.random.Generator, sigma: float) -> U8:
    """Blur by a Gaussian of `sigma` pixels."""
    return to_bytes(blur(to_unit(image), sigma))


def defocus_blur(image: U8, _: np.random.Generator, radius: int, smoothing: float) -> U8:
    """Blur by a disk of `radius` pixels, whose edge is smoothed by a Gaussian: a lens that is out of focus."""
    half = max(_GRID, radius)
    grid = np.arange(-half, half + 1)
    disk = ((grid[:, None] ** 2 + grid**2) <= radius**2).astype(np.float32)
    side = 3 if radius <= _GRID else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (side, side), smoothing)
    return to_bytes(np.asarray(cv2.filter2D(to_unit(image), -1, kernel), dtype=np.float64))


def glass_blur(image: U8, generator: np.random.Generator, sigma: float, reach: int, rounds: int) -> U8:
    """Blur, let each pixel change places with one at most `reach` away, `rounds` times, and blur again: frosted glass."""
    shuffled = to_unit(to_bytes(blur(to_unit(image), sigma)))
    for _ in range(rounds):
        _shuffle(shuffled, generator, reach)
    return to_bytes(blur(shuffled, sigma))


def motion_blur(image: U8, generator: np.random.Generator, radius: int, sigma: float) -> U8:
    """Blur along a line, at an angle of at most 45 degrees to the horizon."""
    return to_bytes(move_blur(to_unit(image), radius, sigma, generator.uniform(-45, 45)))


def zoom_blur(image: U8, _: np.random.Generator, most: float, step: float) -> U8:
    """Average the image with itself enlarged by 1 to `most`: a camera that moves forward."""
    unit = to_unit(image)
    factors = np.arange(1, most, step)
    return to_bytes((unit + sum(enlarge(unit, factor) for factor in factors)) / (len(factors) + 1))


def _shuffle(image: F64, generator: np.random.Generator, reach: int) -> None:
    # pixels that are 2 * reach apart cannot meet: each such grid changes places at once
    height, width = image.shape[:2]
    apart = 2 * reach
    for row in generator.permutation(apart):
        for column in generator.permutation(apart):
            rows = np.arange(reach + row, height - reach, apart)[:, None]
            columns = np.arange(reach + column, width - reach, apart)
            down, across = generator.integers(-reach, reach, size=(2, len(rows), len(columns)))
            here, there = (rows, columns), (rows + down, columns + across)
            image[here], image[there] = image[there].copy(), image[here].copy()
