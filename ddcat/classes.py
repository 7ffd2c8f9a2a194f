"""Names and colours of the classes of the known data sets, and the label that is ignored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddcat.text import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORED_COLOUR",
    "IGNORE_INDEX",
    "LONGEST_NAME",
    "VOC",
    "Classes",
    "Colour",
    "colour_table",
    "colourise",
    "repeated_name",
    "voc_palette",
]

IGNORE_INDEX = 255  # a pixel with this label is never scored and never attacked for gain
LONGEST_NAME = 100  # characters of a class's name: it stands in legends, headers and every JSON answer
IGNORED_COLOUR = (225, 225, 225)  # of ignored pixels in pictures

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """
    The classes of a data set, in the order of their label values 0, 1, ..., K - 1.

    Attributes
    ----------
    names : tuple of str
    palette : tuple of (red, green, blue)
        In 0..255, one for each class.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names, but {len(self.palette)} colours")
        if not 1 < len(self.names) < IGNORE_INDEX:
            raise ValueError(f"expected 2 to {IGNORE_INDEX - 1} classes, got {len(self.names)}")
        for name, colour in zip(self.names, self.palette, strict=True):
            if not 1 <= len(name) <= LONGEST_NAME:
                raise ValueError(f"a class has a name of {len(name)} characters, expected 1 to {LONGEST_NAME}")
            if any(level not in range(256) for level in colour):
                raise ValueError(f"class {printable(name)} has the colour {list(colour)}, expected levels of 0 to 255")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background(self) -> int | None:
        """Index of the class "background", as in Pascal VOC; None where the data set has none."""
        return self.names.index("background") if "background" in self.names else None

    @classmethod
    def with_voc_palette(cls, names: Sequence[str]) -> "Classes":
        """Return classes with the colours of Pascal VOC."""
        return cls(tuple(names), voc_palette(len(names)))


def repeated_name(names: Sequence[str]) -> str | None:
    """Return the first class name that occurs twice, or None."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def voc_palette(count: int) -> tuple[Colour, ...]:
    """Return the first colours of Pascal VOC's map, in which the bits of the index alternate between the channels."""

    def colour(index: int) -> Colour:
        channels = [0, 0, 0]
        for shift in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= ((index >> channel) & 1) << shift
            index >>= 3
        return channels[0], channels[1], channels[2]

    return tuple(colour(index) for index in range(count))


VOC = Classes.with_voc_palette(
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
        "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )
)  # fmt: skip

CITYSCAPES = Classes(
    (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
        "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

CAMVID = Classes(
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip


def colour_table(classes: Classes) -> "npt.NDArray[np.uint8]":
    """Return the colours of all label values, (256, 3): 255 is `IGNORED_COLOUR`, other values without a class are black."""
    import numpy as np  # noqa: PLC0415 -- commands read class names at the start, without numpy

    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = classes.palette
    colours[IGNORE_INDEX] = IGNORED_COLOUR
    return colours


def colourise(labels: "npt.NDArray[np.integer]", classes: Classes) -> "npt.NDArray[np.uint8]":
    """Return the colours, (H, W, 3), of labels, (H, W) with values in 0..K-1 or 255."""
    pixels: npt.NDArray[np.uint8] = colour_table(classes)[labels]
    return pixels
