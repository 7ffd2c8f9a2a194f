"""
Drawing of one generated scene: a street with buildings, trees, vehicles and poles.

The colours of the classes overlap on purpose; what tells them apart is texture (window grids, asphalt grain, leaves, smooth
bodies), form and place. That is what networks learn easily and an attack takes away easily.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ddcat.classes import IGNORE_INDEX, Classes
from ddcat_train.data.augment import F32
from ddcat_train.data.dataset import U8
from ddcat_train.data.synthetic.canvas import Canvas, Texture, flat

__all__ = ["SCENE_CLASSES", "render"]

SCENE_CLASSES = Classes(
    ("background", "road", "building", "vegetation", "vehicle", "pole"),
    ((70, 130, 180), (128, 64, 128), (110, 70, 60), (107, 142, 35), (0, 0, 142), (230, 200, 60)),
)
_BACKGROUND, _ROAD, _BUILDING, _VEGETATION, _VEHICLE, _POLE = range(6)

_OVER = 2  # drawn that much larger, then averaged: edges become smooth


def render(generator: np.random.Generator, size: tuple[int, int]) -> tuple[U8, U8]:
    """
    Draw one scene.

    Parameters
    ----------
    size : (height, width)

    Returns
    -------
    image : (H, W, 3) uint8
        RGB.
    labels : (H, W) uint8
        Values in 0..5; 255 on the pixels that touch an object in front of them.
    """
    canvas = Canvas(generator, size[0] * _OVER, size[1] * _OVER)
    horizon = canvas.height * generator.uniform(0.40, 0.56)
    _sky(canvas, horizon)
    _buildings(canvas, horizon)
    _ground(canvas, horizon)
    standing: list[tuple[float, Callable[[Canvas, float, float], None]]] = []
    for draw, fewest, most, nearest in _STANDING:
        feet = generator.uniform(horizon + 0.03 * canvas.height, nearest * canvas.height, generator.integers(fewest, most + 1))
        standing += [(float(foot), draw) for foot in feet]
    for foot, draw in sorted(standing, key=lambda item: item[0]):  # the far ones first: the near ones hide them
        draw(canvas, horizon, foot)
    return _photographed(canvas, horizon, size), _labelled(canvas)


def _sky(canvas: Canvas, horizon: float) -> None:
    generator = canvas.generator
    high, low = canvas.colour(0.5, 0.8, (-0.05, 0.0, 0.06), 0.03), canvas.colour(0.6, 0.85, (0, 0, 0.02), 0.03)
    ramp = np.linspace(0, 1, canvas.height, dtype=np.float32)[:, None, None] * np.float32(canvas.height / horizon)
    clouds = canvas.noise(canvas.height, canvas.width, canvas.height / 6, canvas.width / 3)[..., None]
    canvas.image[:] = high * (1 - ramp) + low * ramp + np.float32(generator.uniform(0.01, 0.06)) * clouds
    canvas.next_object()
    hills = canvas.colour(0.4, 0.65, (-0.02, 0.01, 0.03), 0.03)
    ridge = horizon - canvas.height * (0.06 + 0.04 * canvas.noise(1, canvas.width, 1, canvas.width / 4)[0])
    mask = (np.arange(canvas.height)[:, None] >= ridge[None]).astype(np.uint8)
    canvas.image[mask > 0] = hills + 0.015 * canvas.noise(canvas.height, canvas.width, 8, 16)[mask > 0][:, None]


def _buildings(canvas: Canvas, horizon: float) -> None:
    generator, unit = canvas.generator, canvas.height / 96
    left = -generator.uniform(0, 0.2) * canvas.width
    while left < canvas.width:
        width = canvas.width * generator.uniform(0.14, 0.36)
        if generator.random() < 0.72:
            top = horizon - canvas.height * generator.uniform(0.12, 0.5)
            canvas.next_object()
            canvas.paint(canvas.box(left, top, left + width, horizon + 2 * unit), _BUILDING, _facade(canvas, unit))
        left += width


def _facade(canvas: Canvas, unit: float) -> Texture:
    generator = canvas.generator
    wall = canvas.colour(0.3, 0.75, (0.03, 0.0, -0.03), 0.05)
    glass = wall + np.float32(generator.choice([-1, 1], p=[0.7, 0.3]) * generator.uniform(0.12, 0.26)) + canvas.colour(0, 0)
    periods = generator.uniform(5, 9, 2) * unit
    shares = generator.uniform(0.4, 0.65, 2)

    def texture(height: int, width: int) -> F32:
        rows, columns = (np.arange(length) / period for length, period in zip((height, width), periods, strict=True))
        inside = (rows % 1 < shares[0])[:, None] & (columns % 1 < shares[1])[None]
        each = generator.normal(0, 0.06, (int(rows[-1]) + 1, int(columns[-1]) + 1)).astype(np.float32)
        panes = glass + each[rows.astype(int)][:, columns.astype(int)][..., None]
        bricks = wall + 0.02 * canvas.noise(height, width, 2, 4)[..., None]
        return np.where(inside[..., None], panes, bricks).astype(np.float32)

    return texture


def _ground(canvas: Canvas, horizon: float) -> None:
    generator, height, width, unit = canvas.generator, canvas.height, canvas.width, canvas.height / 96
    grass = canvas.colour(0.3, 0.6, (-0.02, 0.05, -0.05), 0.04)
    canvas.next_object()
    canvas.paint(canvas.box(0, horizon, width, height), _VEGETATION, _leaves(canvas, grass, (1.5 * unit, 2.5 * unit)))

    vanishing = width * generator.uniform(0.3, 0.7)
    left, right = -width * generator.uniform(0.1, 0.9), width * generator.uniform(1.1, 1.9)
    gap = width * generator.uniform(0.03, 0.12)
    asphalt = canvas.colour(0.3, 0.6, spread=0.025)
    grain = np.float32(generator.uniform(0.02, 0.05))

    def texture(rows: int, columns: int) -> F32:
        shade = grain * canvas.noise(rows, columns, 2, 2) + 0.03 * canvas.noise(rows, columns, 6 * unit, 40 * unit)
        return np.asarray(asphalt + shade[..., None], np.float32)

    road = canvas.polygon([(vanishing - gap, horizon), (vanishing + gap, horizon), (right, height), (left, height)])
    canvas.next_object()
    canvas.paint(road, _ROAD, texture)
    paint = asphalt + np.float32(generator.uniform(0.15, 0.3))
    for lane in generator.choice([0.25, 0.4, 0.5, 0.6, 0.75], generator.integers(1, 3), replace=False):
        foot = left + lane * (right - left)
        start = generator.uniform(0, 0.1)
        for near in np.arange(1 - start, 0.05, -0.22):
            ends = [(near, 1), (max(near - 0.11, 0.02), 1), (max(near - 0.11, 0.02), -1), (near, -1)]
            stripe = [
                (vanishing + (foot + 1.3 * unit * side - vanishing) * t, horizon + (height - horizon) * t) for t, side in ends
            ]
            canvas.paint(canvas.polygon(stripe), _ROAD, flat(paint))


def _leaves(canvas: Canvas, colour: F32, grains: tuple[float, float]) -> Texture:
    strength = np.float32(canvas.generator.uniform(0.05, 0.09))

    def texture(height: int, width: int) -> F32:
        fine, coarse = canvas.noise(height, width, *grains), canvas.noise(height, width, 4 * grains[0], 4 * grains[1])
        return np.asarray(colour + strength * (fine + 0.8 * coarse)[..., None], np.float32)

    return texture


def _tree(canvas: Canvas, horizon: float, foot: float) -> None:
    generator, unit = canvas.generator, canvas.height / 96
    near = 0.35 + 0.9 * (foot - horizon) / (canvas.height - horizon)
    x = canvas.width * generator.choice([generator.uniform(-0.05, 0.3), generator.uniform(0.7, 1.05)])
    across, down = 26 * unit * near * generator.uniform(0.5, 1.0), 26 * unit * near * generator.uniform(0.6, 1.1)
    middle = foot - down - generator.uniform(0, 14) * unit * near
    canvas.next_object()
    trunk = canvas.box(x - 1.6 * unit * near, middle, x + 1.6 * unit * near, foot)
    canvas.paint(trunk, _VEGETATION, flat(canvas.colour(0.2, 0.4, (0.03, 0, -0.02), 0.03)))
    rows, columns = np.ogrid[: canvas.height, : canvas.width]
    far = ((columns - x) / across) ** 2 + ((rows - middle) / down) ** 2
    crown = far + 0.3 * canvas.noise(canvas.height, canvas.width, 5 * unit, 5 * unit) < 1
    tint = (-0.03, 0.05, -0.06) if generator.random() < 0.75 else (0.08, 0.0, -0.06)  # summer or autumn
    texture = _leaves(canvas, canvas.colour(0.25, 0.55, tint, 0.03), (1.5 * unit, 1.5 * unit))
    canvas.paint(crown.astype(np.uint8), _VEGETATION, texture)


def _vehicle(canvas: Canvas, horizon: float, foot: float) -> None:
    generator, unit = canvas.generator, canvas.height / 96
    near = 0.2 + 0.8 * (foot - horizon) / (canvas.height - horizon)
    side = generator.random() < 0.5  # seen from the side, else from behind
    width = 52 * unit * near * generator.uniform(0.8, 1.1) * (1 if side else 0.62)
    height = width * (generator.uniform(0.36, 0.46) if side else generator.uniform(0.7, 0.95))
    left = canvas.width * generator.uniform(0.0, 1.0) - width / 2
    right, top = left + width, foot - height
    belt = top + 0.45 * height
    body, glass = canvas.colour(0.2, 0.8, spread=0.14), canvas.colour(0.15, 0.4, (0, 0, 0.03), 0.03)
    dark, wheel = canvas.colour(0.05, 0.15, spread=0.01), height * 0.2

    def shaded(rows: int, columns: int) -> F32:
        ramp = np.linspace(0.07, -0.07, rows, dtype=np.float32)[:, None, None]
        return np.broadcast_to(body + ramp, (rows, columns, 3))

    canvas.darken(canvas.ellipse((left + right) / 2, foot, 0.55 * width, 0.09 * height), 0.45, 1.5 * unit)
    canvas.next_object()
    lean, wheels = (0.2, (0.2, 0.8)) if side else (0.1, (0.1, 0.9))
    for at in wheels:
        canvas.paint(canvas.ellipse(left + at * width, foot - 0.7 * wheel, wheel, wheel), _VEHICLE, flat(dark))
    cabin = [(left + lean * width, top), (right - lean * width, top), (right - 0.06 * width, belt), (left + 0.06 * width, belt)]
    canvas.paint(canvas.polygon(cabin), _VEHICLE, shaded)
    canvas.paint(canvas.box(left, belt, right, foot - 0.7 * wheel), _VEHICLE, shaded)
    panes = ((0.22, 0.48), (0.53, 0.78)) if side else ((0.17, 0.83),)
    for start, end in panes:
        pane = canvas.box(left + start * width, top + 0.09 * height, left + end * width, belt)
        canvas.paint(pane, _VEHICLE, flat(glass))
    light = np.asarray((0.75, 0.15, 0.12) if generator.random() < 0.6 else (0.9, 0.88, 0.75), np.float32)
    for start, end in ((0.0, 0.14), (0.86, 1.0)):
        lamp = canvas.box(left + start * width, belt + 0.1 * height, left + end * width, belt + 0.24 * height)
        canvas.paint(lamp, _VEHICLE, flat(light))


def _pole(canvas: Canvas, horizon: float, foot: float) -> None:
    generator, unit = canvas.generator, canvas.height / 96
    near = 0.5 + 0.5 * (foot - horizon) / (canvas.height - horizon)
    x = canvas.width * generator.uniform(0.05, 0.95)
    top = foot - canvas.height * near * generator.uniform(0.45, 0.85)
    half = max(1.0, 1.4 * unit * near)
    metal = flat(canvas.colour(*((0.1, 0.3) if generator.random() < 0.6 else (0.7, 0.9)), spread=0.03))
    canvas.next_object()
    lean = generator.normal(0, 0.01) * canvas.height
    canvas.paint(
        canvas.polygon([(x - half + lean, top), (x + half + lean, top), (x + half, foot), (x - half, foot)]), _POLE, metal
    )
    kind = generator.integers(3)
    if kind == 0:  # a street lamp
        reach = generator.choice([-1, 1]) * 11 * unit * near
        canvas.paint(canvas.box(x + lean, top, x + lean + reach, top + 1.5 * half), _POLE, metal)
    elif kind == 1:  # a traffic sign
        plate = flat(canvas.colour(0.3, 0.8, spread=0.2))
        canvas.paint(canvas.ellipse(x + lean, top, 4 * unit * near, 4 * unit * near), _POLE, plate)


# How it is drawn, fewest and most of them, and how near their feet come (1: the lower edge).
_STANDING: tuple[tuple[Callable[[Canvas, float, float], None], int, int, float], ...] = (
    (_tree, 1, 4, 0.75),
    (_vehicle, 1, 4, 0.97),
    (_pole, 1, 4, 0.95),
)


def _photographed(canvas: Canvas, horizon: float, size: tuple[int, int]) -> U8:
    """Apply the effects of a camera: light and shadow, blur, noise, 8 bits."""
    generator, height, width = canvas.generator, canvas.height, canvas.width
    if generator.random() < 0.5:
        x, reach = generator.uniform(0, width), generator.uniform(0.15, 0.5) * width
        slant = generator.uniform(-1, 1) * width
        shadow = canvas.polygon([(x, horizon), (x + reach, horizon), (x + reach + slant, height), (x + slant, height)])
        canvas.darken(shadow, generator.uniform(0.6, 0.85), 0.01 * height)
    image = np.asarray(cv2.resize(canvas.image, size[::-1], interpolation=cv2.INTER_AREA), np.float32)
    side_light = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None] * np.float32(generator.uniform(-0.1, 0.1))
    image = np.clip(image, 0.02, None) ** np.float32(generator.uniform(0.85, 1.2)) * (1 + side_light)
    image = image * (generator.uniform(0.75, 1.15) * generator.uniform(0.94, 1.06, 3)).astype(np.float32)
    if generator.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 0.8)), np.float32)
    noise = generator.standard_normal(image.shape, dtype=np.float32) * np.sqrt(np.clip(image, 0, 1) + 0.2)
    image = image + np.float32(generator.uniform(0.005, 0.02)) * noise
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)


def _labelled(canvas: Canvas) -> U8:
    pick = slice(_OVER // 2, None, _OVER)
    order = canvas.order[pick, pick]
    labels: U8 = canvas.labels[pick, pick].copy()
    front = np.asarray(cv2.dilate(order, np.ones((3, 3), np.uint8)), np.uint8)
    labels[front > order] = IGNORE_INDEX
    return labels
