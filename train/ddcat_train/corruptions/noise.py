"""Noise of the sensor, drawn anew for each image."""

import numpy as np

from ddcat_train.corruptions.arrays import U8, to_bytes, to_unit

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]


def gaussian_noise(image: U8, generator: np.random.Generator, deviation: float) -> U8:
    """Add normal noise of this deviation, in [0, 1] units: heat of the sensor in low light."""
    return to_bytes(to_unit(image) + generator.normal(scale=deviation, size=image.shape))


def shot_noise(image: U8, generator: np.random.Generator, photons: float) -> U8:
    """Count photons, of which white has this many on average."""
    return to_bytes(generator.poisson(to_unit(image) * photons) / photons)


def impulse_noise(image: U8, generator: np.random.Generator, share: float) -> U8:
    """Set this share of the values to 0 or 255, half of them each."""
    hit = generator.random(image.shape) < share
    white = generator.random(image.shape) < 0.5
    return np.where(hit, np.where(white, np.uint8(255), np.uint8(0)), image)


def speckle_noise(image: U8, generator: np.random.Generator, deviation: float) -> U8:
    """Add normal noise that is as strong as the pixel is bright."""
    unit = to_unit(image)
    return to_bytes(unit + unit * generator.normal(scale=deviation, size=image.shape))
