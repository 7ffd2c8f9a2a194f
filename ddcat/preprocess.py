"""
From an image file to the input of a graph, and from its labels back to a mask of the file's size.

The rule stands in the manifest of a bundle. Training's reader, the gate, the server and `ddcat.open_bundle` all follow it by
this module, so that an engine is served what it was judged on.
"""

from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ddcat.band_files import decode_bands
from ddcat.bands import Bands, band_count, by_band
from ddcat.image_files import orientation_of
from ddcat.image_pixels import decode_image
from ddcat.schema import StrictModel

__all__ = [
    "AS_STORED",
    "FileRule",
    "Kernel",
    "Orientation",
    "Preprocessed",
    "Resize",
    "apply_rule",
    "decoded",
    "network_size",
    "preprocess",
    "restore",
    "turned",
]

U8 = npt.NDArray[np.uint8]
Size = tuple[int, int]  # (height, width)
T = TypeVar("T", np.uint8, np.float32)
Value = Annotated[int, Field(ge=0, le=65535)]
Side = Annotated[int, Field(ge=1, le=2**31)]  # pixels
Orientation = Literal["stored", "exif"]
Kernel = Literal["area", "linear", "antialias"]


def _ascending(values: tuple[int, int]) -> tuple[int, int]:
    if values[0] >= values[1]:
        raise ValueError(f"expected the lower value first, got {values[0]} and {values[1]}")
    return values


class Resize(StrictModel):
    """How an image is resized."""

    to: Side | tuple[Side, Side] = Field(description="The longer side, whose ratio to the other is kept; or height and width.")
    kernel: Kernel = Field(
        default="area",
        description="area: OpenCV's INTER_AREA, or INTER_LINEAR where a side grows. linear: OpenCV's INTER_LINEAR. "
        "antialias: Pillow's BILINEAR, which weighs all pixels of the area where it shrinks.",
    )


class FileRule(StrictModel):
    """What becomes of an image file before the graph, in this order; the mask is given the size of the file again."""

    orientation: Orientation = Field(
        default="stored", description="stored: pixels as the file has them. exif: turned as its EXIF orientation says."
    )
    values: Annotated[tuple[Value, Value], AfterValidator(_ascending)] | None = Field(
        default=None,
        description="For files of 16 bits a channel: the values that become 0 and 255, with 8 bits between them; what lies "
        "beyond is clipped, and files of 8 bits are refused. None: files of 8 bits, as they are; those of 16 are refused.",
    )
    bands: Bands | None = Field(
        default=None,
        description="The number of bands of a file, all of which are read; or the bands that are read, counted from 1, in this "
        "order. None: red, green and blue; grey and palettes become these, and files of other bands are refused.",
    )
    resize: Resize | None = Field(default=None, description="None: images keep their size.")

    @model_serializer(mode="wrap")
    def _without_bands(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `bands` where there are none, as files of earlier versions do."""
        values: dict[str, Any] = handler(self)
        return values if self.bands is not None else {key: value for key, value in values.items() if key != "bands"}

    @property
    def channels(self) -> int:
        """The number of bands of an image in the graph."""
        return band_count(self.bands)

    @property
    def long_side(self) -> int | None:
        """The longer side that images are resized to; None: they are not, or to height and width."""
        return self.resize.to if self.resize is not None and isinstance(self.resize.to, int) else None

    def with_long_side(self, long_side: int | None) -> Self:
        """Return it with another longer side; None: images keep their size."""
        kernel = "area" if self.resize is None else self.resize.kernel
        resize = None if long_side is None else Resize(to=long_side, kernel=kernel)
        return self.model_copy(update={"resize": resize})


AS_STORED: Final = FileRule()


class Preprocessed(NamedTuple):
    """
    An image as a graph takes it.

    Attributes
    ----------
    pixels : (H, W, C) uint8
        RGB, or the bands of the rule.
    size : (height, width)
        The image's own, before it was resized: that of its mask.
    """

    pixels: U8
    size: Size


def preprocess(image: bytes | U8, rule: FileRule) -> Preprocessed:
    """
    Make the input of a graph from an image.

    Parameters
    ----------
    image : bytes or (H, W, C) uint8
        A whole JPEG, PNG or WebP file, or for bands a TIFF file; or its pixels, which are neither turned again nor brought to
        8 bits.
    rule : FileRule
        `bundle.manifest.preprocessing`.

    Raises
    ------
    ImageFileError
        Where the file is damaged, of another format, or would have to be guessed at; the message does not name it.
    """
    pixels = decoded(image, rule) if isinstance(image, bytes) else image
    return Preprocessed(apply_rule(pixels, rule), (pixels.shape[0], pixels.shape[1]))


def decoded(content: bytes, rule: FileRule) -> U8:
    """Decode a whole file, and turn it as the rule says; errors as `preprocess`."""
    pixels = decode_image(content, rule.values) if rule.bands is None else decode_bands(content, rule.bands, rule.values)
    return turned(pixels, orientation_of(content) if rule.orientation == "exif" else 1)


def apply_rule(pixels: U8, rule: FileRule) -> U8:
    """
    Apply what a rule does to decoded and turned pixels.

    Parameters
    ----------
    pixels : (H, W, C) uint8
    rule : FileRule

    Returns
    -------
    (h, w, C) uint8
        Of `network_size`; the same array where there is nothing to do.
    """
    if rule.resize is None:
        return pixels
    return _resized(pixels, network_size((pixels.shape[0], pixels.shape[1]), rule), rule.resize.kernel)


def network_size(size: Size, rule: FileRule) -> Size:
    """Return the height and width that a turned image of some height and width has in the graph."""
    if rule.resize is None:
        return size
    if not isinstance(rule.resize.to, int):
        return rule.resize.to
    factor = rule.resize.to / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def restore(labels: npt.NDArray[T], size: Size) -> npt.NDArray[T]:
    """
    Give labels, or their confidence, the size of the image that they are of: each pixel has the value of the nearest one.

    Parameters
    ----------
    labels : (h, w) uint8 or float32
    size : (height, width)

    Returns
    -------
    (height, width) of the same type
        The same array where it has that size.
    """
    if labels.shape == size:
        return labels
    cv2 = _opencv()
    # the plain INTER_NEAREST is off by half a pixel
    restored: npt.NDArray[T] = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return restored


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn stored pixels, (H, W, ...), as an EXIF orientation of 1 to 8 says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _resized(pixels: U8, size: Size, kernel: Kernel) -> U8:
    if pixels.shape[:2] == size:
        return pixels
    if kernel == "antialias":
        from PIL import Image  # noqa: PLC0415 -- arrays that keep their size need no library of images

        return by_band(lambda part: np.asarray(Image.fromarray(part).resize(size[::-1], Image.Resampling.BILINEAR)), pixels)
    cv2 = _opencv()
    grows = size[0] > pixels.shape[0] or size[1] > pixels.shape[1]
    method = cv2.INTER_AREA if kernel == "area" and not grows else cv2.INTER_LINEAR
    return by_band(lambda part: np.asarray(cv2.resize(part, size[::-1], interpolation=method), dtype=np.uint8), pixels)


def _opencv() -> Any:
    import cv2  # noqa: PLC0415 -- only where something is resized

    cv2.setNumThreads(0)  # its threads would fight with those of torch, and do not survive the fork of a worker
    return cv2
