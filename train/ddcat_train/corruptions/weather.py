"""Weather: snow, frost, fog, and drops on the lens."""

import cv2
import numpy as np

from ddcat_train.corruptions.arrays import F64, U8, blur, enlarge, move_blur, to_bytes, to_unit

__all__ = ["fog", "frost", "snow", "spatter"]

_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_ICE = np.array([133, 155, 167]) / 255  # mean colour of the six published photographs; below, their deviations
_BETWEEN, _WITHIN = 0.16, 0.14


def snow(
    image: U8,
    generator: np.random.Generator,
    density: float,
    spread: float,
    size: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> U8:
    """
    Let it snow: flakes that fall aslant, in a scene that grows pale.

    Flakes are normal noise (`density`, `spread`), enlarged by `size`, of which what is above `threshold` stays; they move by
    `radius` and `sigma`. The scene keeps the share `kept` of its colours.
    """
    flakes = enlarge(generator.normal(density, spread, size=(*image.shape[:2], 1)), size)[..., 0]
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = move_blur(flakes, radius, sigma, generator.uniform(-135, -45))
    flakes = np.round(np.clip(flakes, 0, 1) * 255) / 255
    unit = to_unit(image)
    grey = unit @ (0.299, 0.587, 0.114)
    pale = kept * unit + (1 - kept) * np.maximum(unit, (grey * 1.5 + 0.5)[..., None])
    return to_bytes(pale + (flakes + flakes[::-1, ::-1])[..., None])


def frost(image: U8, generator: np.random.Generator, kept: float, ice: float) -> U8:
    """
    Lay ice over the lens: `kept` times the image and `ice` times the ice.

    The published corruption has photographs of ice; here crystals are drawn, of the same mean and deviation.
    """
    return to_bytes(kept * to_unit(image) + ice * _crystals(generator, image.shape[0], image.shape[1]))


def fog(image: U8, generator: np.random.Generator, thickness: float, roughness: float) -> U8:
    """Add clouds, `thickness` times as bright as white, and divide so that the brightest pixel stays as bright."""
    unit = to_unit(image)
    brightest = unit.max()
    clouds = _clouds(generator, max(image.shape[:2]), roughness)[: image.shape[0], : image.shape[1], None]
    return to_bytes((unit + thickness * clouds) * brightest / (brightest + thickness))


def spatter(
    image: U8,
    generator: np.random.Generator,
    wetness: float,
    spread: float,
    sigma: float,
    threshold: float,
    strength: float,
    muddy: bool,
) -> U8:
    """
    Splash water, or mud, on the lens.

    Drops are normal noise (`wetness`, `spread`), blurred by `sigma`, above `threshold`. Water adds light with `strength`; mud
    covers, its edges blurred by `strength` pixels.
    """
    drops = blur(generator.normal(wetness, spread, size=image.shape[:2]), sigma)
    drops[drops < threshold] = 0
    unit = to_unit(image)
    if muddy:
        cover = blur((drops > threshold).astype(np.float64), strength)
        cover[cover < 0.8] = 0
        return to_bytes(unit * (1 - cover[..., None]) + cover[..., None] * _MUD)
    shine = _shine(np.clip(drops * 255, 0, 255).astype(np.uint8))
    return to_bytes(unit + np.clip(strength * shine[..., None] * _WATER, 0, 1))


def _shine(drops: U8) -> F64:
    """Draw light at the edges of drops, from above and the left; in [0, 1]."""
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    near = cv2.equalizeHist(np.asarray(cv2.blur(np.minimum(distance, 20), (3, 3)), dtype=np.uint8))
    relief = cv2.filter2D(near, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    shine = drops * np.asarray(cv2.blur(relief, (3, 3)), dtype=np.float64)
    return np.asarray(shine / max(shine.max(), 1))


def _clouds(generator: np.random.Generator, side: int, roughness: float) -> F64:
    """
    Draw a plasma fractal by diamonds and squares: each half step's deviation is `roughness` times smaller.

    Returns
    -------
    (S, S) float64
        In [0, 1]; S is the next power of two of `side`. Its opposite borders fit together.
    """
    size = 1 << (side - 1).bit_length()
    clouds, step, height = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        clouds[half::step, half::step] = _near(pairs + np.roll(pairs, -1, 1), generator, height)
        centres = clouds[half::step, half::step]
        below, right = corners + np.roll(corners, -1, 1), corners + np.roll(corners, -1, 0)
        clouds[::step, half::step] = _near(below + centres + np.roll(centres, 1, 0), generator, height)
        clouds[half::step, ::step] = _near(right + centres + np.roll(centres, 1, 1), generator, height)
        step, height = half, height / roughness
    clouds -= clouds.min()
    return np.asarray(clouds / clouds.max())


def _near(four: F64, generator: np.random.Generator, height: float) -> F64:
    return four / 4 + height * generator.uniform(-height, height, size=four.shape)


def _crystals(generator: np.random.Generator, height: int, width: int) -> F64:
    """Draw needles of ice in four directions on a ground of clouds; (H, W, 3) in [0, 1]."""
    seeds = generator.random((height, width)) < 0.02
    first = generator.uniform(0, 180)
    needles = sum(move_blur(seeds.astype(np.float64), 10, 10, first + turn) for turn in (0, 60, 120, 200))
    ground = _clouds(generator, max(height, width), 1.7)[:height, :width]
    relief = _standard(_standard(np.asarray(needles)) + _standard(ground))
    return np.clip(_ICE + generator.normal(scale=_BETWEEN) + _WITHIN * relief[..., None], 0, 1)


def _standard(values: F64) -> F64:
    return np.asarray((values - values.mean()) / max(values.std(), 1e-6))
