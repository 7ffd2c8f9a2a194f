"""TIFF files: GeoTIFFs in, by rasterio, where that is installed; masks out, at the same place on earth if the image has one."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddcat.classes import Classes, colour_table
from ddcat.errors import DdcatError
from ddcat.geotiff import Scene, SceneError, is_tiff, opened_scene
from ddcat.preprocess import AS_STORED, FileRule
from ddcat_serve.errors import RequestError

__all__ = ["decode_tiff", "encode_tiff", "read_scene", "tiff_size"]

_MOST_BLOCK_BYTES = 2**26  # of the smallest part of a file that can be read

U8 = npt.NDArray[np.uint8]


@contextlib.contextmanager
def read_scene(file: str | bytes, rule: FileRule = AS_STORED) -> Iterator[Scene]:
    """
    Open a GeoTIFF of a client, its path or its content, as a rule says which bands and values are read.

    RequestError (415) if rasterio is missing, the file is damaged or of another kind, or is to be read in too large parts.
    """
    with contextlib.ExitStack() as stack:
        try:
            scene = stack.enter_context(opened_scene(file, rule.values, rule.bands))
        except DdcatError as cause:
            raise _refusal(cause) from cause
        if scene.block_bytes > _MOST_BLOCK_BYTES:
            raise RequestError(
                415, f"the TIFF is to be read in parts of {scene.block_bytes} bytes, expected at most {_MOST_BLOCK_BYTES}: "
                "write it in smaller tiles or strips"
            )  # fmt: skip
        try:
            yield scene
        except SceneError as cause:  # other errors are not the file's
            raise _refusal(cause) from cause


def _refusal(cause: DdcatError) -> RequestError:
    return RequestError(415, f"the TIFF: {cause}")


def tiff_size(content: bytes, rule: FileRule) -> tuple[int, int]:
    """Read height and width; errors as `read_scene`."""
    with read_scene(content, rule) as scene:
        return scene.height, scene.width


def decode_tiff(content: bytes, size: tuple[int, int], rule: FileRule) -> U8:
    """Read the pixels, (H, W, C) uint8, of a file of some size; errors as `read_scene`."""
    with read_scene(content, rule) as scene:
        return scene.read(0, 0, *size)


def encode_tiff(labels: U8, classes: Classes, content: bytes, rule: FileRule = AS_STORED) -> bytes:
    """
    Encode labels, (H, W) uint8, as a TIFF with a colour table.

    `content` is the image's file, read by `rule`: the mask of a GeoTIFF gets its CRS and transform.
    """
    if is_tiff(content):
        with read_scene(content, rule) as scene:
            return scene.mask(labels, classes)
    mask = Image.fromarray(labels, "P")
    mask.putpalette(colour_table(classes).tobytes())
    file = io.BytesIO()
    mask.save(file, "TIFF", compression="tiff_adobe_deflate")
    return file.getvalue()
