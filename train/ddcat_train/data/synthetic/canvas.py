"""The canvas of the generated scenes."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from ddcat_train.data.dataset import U8

__all__ = ["Canvas", "Points", "Texture", "flat"]

F32 = npt.NDArray[np.float32]
Texture = Callable[[int, int], F32]  # height, width -> (height, width, 3)
Points = list[tuple[float, float]]  # (x, y)


class Canvas:
    """The picture that is drawn, the class of every pixel, and which object, counted from the back, it shows."""

    def __init__(self, generator: np.random.Generator, height: int, width: int) -> None:
        self.generator = generator
        self.height = height
        self.width = width
        self.image = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.order = np.zeros((height, width), np.uint8)
        self.painted = 0

    def next_object(self) -> None:
        """Begin an object, in front of all that were painted so far."""
        self.painted += 1

    def paint(self, mask: U8, label: int, texture: Texture) -> None:
        """Paint where the mask is not 0, as a part of the object that was begun last."""
        left, top, width, height = cv2.boundingRect(mask)
        if not width:
            return
        box = slice(top, top + height), slice(left, left + width)
        where = mask[box] > 0
        np.copyto(self.image[box], texture(height, width), where=where[..., None])
        self.labels[box][where] = label
        self.order[box][where] = self.painted

    def darken(self, mask: U8, factor: float, softness: float) -> None:
        """Cast a shadow with soft edges on what was painted so far."""
        soft = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), softness)
        self.image *= (1 - (1 - factor) * np.asarray(soft, np.float32))[..., None]

    def polygon(self, points: Points) -> U8:
        """Mask of a filled polygon, (height, width), 0 or 255."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(mask, [np.rint(np.asarray(points)).astype(np.int32)], 255)
        return mask

    def box(self, left: float, top: float, right: float, bottom: float) -> U8:
        """Mask of a box with upright sides, (height, width), 0 or 255."""
        return self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)])

    def ellipse(self, x: float, y: float, across: float, down: float) -> U8:
        """Mask of an ellipse with these half axes, (height, width), 0 or 255."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.ellipse(mask, (round(x), round(y)), (max(1, round(across)), max(1, round(down))), 0, 0, 360, 255, -1)
        return mask

    def colour(self, low: float, high: float, tint: tuple[float, float, float] = (0, 0, 0), spread: float = 0.05) -> F32:
        """A grey between `low` and `high`, tinted, and off it at random by `spread` in each channel."""
        grey = self.generator.uniform(low, high)
        return np.asarray(grey + np.asarray(tint) + self.generator.normal(0, spread, 3), np.float32)

    def noise(self, height: int, width: int, down: float, across: float) -> F32:
        """Smooth noise of about unit deviation, (height, width), with grains of `down` x `across` pixels."""
        grains = int(height / down) + 2, int(width / across) + 2
        coarse = self.generator.standard_normal(grains, dtype=np.float32)
        return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def flat(colour: F32) -> Texture:
    """Texture of one colour, (3,)."""
    return lambda height, width: np.broadcast_to(colour, (height, width, 3))
