"""GeoTIFFs of any size, read and written part by part by rasterio; masks keep the place on earth."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.atomic_files import written_aside
from ddcat.classes import Classes, colour_table
from ddcat.error_text import first_line
from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.image_pixels import table_of_16_bits

__all__ = ["Scene", "opened_scene"]

U8 = npt.NDArray[np.uint8]
_CACHE = 2**26  # bytes that GDAL keeps of what it read and of what it is to write
_BLOCK = 256  # side of the blocks of a mask


class Scene:
    """
    An open GeoTIFF, whose first three bands are red, green and blue.

    Attributes
    ----------
    height, width : int
    block_bytes : int
        Memory of the smallest part that can be read.
    """

    def __init__(self, file: Any, values: tuple[int, int] | None) -> None:
        self._file = file
        rows, columns = file.block_shapes[0]
        together = int(file.count) if file.profile.get("interleave") == "pixel" else 1
        self.block_bytes = int(rows) * int(columns) * together * np.dtype(file.dtypes[0]).itemsize
        self._table = None if values is None else table_of_16_bits(values)
        self.height, self.width = int(file.height), int(file.width)

    def read(self, top: int, left: int, height: int, width: int) -> U8:
        """Read a part of the image: (height, width, 3) uint8."""
        try:
            bands = self._file.read((1, 2, 3), window=((top, top + height), (left, left + width)))
        except _rasterio().errors.RasterioError as cause:
            raise DdcatError(f"it cannot be read: {first_line(cause)}") from cause
        pixels = bands.transpose(1, 2, 0)
        return np.ascontiguousarray(pixels if self._table is None else self._table[pixels])

    def write_mask(self, path: Path, bands: Iterable[U8], classes: Classes) -> None:
        """Write a mask, whole or not at all, from bands of rows: a GeoTIFF of one band with the scene's CRS and transform."""
        with written_aside(path) as aside, _rasterio().open(aside, "w", **self._mask_profile()) as mask:
            _fill(mask, bands, classes)

    def mask(self, labels: U8, classes: Classes) -> bytes:
        """Make the same file of labels, (H, W), in memory."""
        with _rasterio().MemoryFile() as memory:
            with memory.open(**self._mask_profile()) as mask:
                _fill(mask, [labels], classes)
            content: bytes = memory.read()
            return content

    def _mask_profile(self) -> dict[str, Any]:
        return {
            "driver": "GTiff", "height": self.height, "width": self.width, "count": 1, "dtype": "uint8", "crs": self._file.crs,
            "transform": self._file.transform, "compress": "deflate", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
            "BIGTIFF": "IF_SAFER",
        }  # fmt: skip


def _fill(mask: Any, bands: Iterable[U8], classes: Classes) -> None:
    mask.write_colormap(1, {label: tuple(colour) for label, colour in enumerate(colour_table(classes).tolist())})
    for top, rows in _whole_blocks(bands):
        mask.write(rows, 1, window=((top, top + len(rows)), (0, mask.width)))


def _whole_blocks(bands: Iterable[U8]) -> Iterator[tuple[int, U8]]:
    """Gather rows to whole blocks: one that is written twice is compressed twice, and the file has a hole."""
    top, kept = 0, np.empty((0, 0), np.uint8)
    for band in bands:
        kept = np.concatenate([kept, band]) if len(kept) else band
        ready = len(kept) // _BLOCK * _BLOCK
        if ready:
            yield top, kept[:ready]
            top, kept = top + ready, kept[ready:]
    if len(kept):
        yield top, kept


@contextlib.contextmanager
def opened_scene(file: str | bytes, values: tuple[int, int] | None = None) -> Iterator[Scene]:
    """
    Open a GeoTIFF.

    Parameters
    ----------
    file : str or bytes
        Its address, or its content.
    values : (int, int), optional
        Of files of 16 bits a band: they become 0 and 255. By default those are refused, with it those of 8 bits.

    Raises
    ------
    DdcatError
        Where rasterio is missing, the file is damaged or of another kind; the message does not name it.
    """
    rasterio = _rasterio()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # then the mask has no place, either
            if isinstance(file, bytes):
                with rasterio.MemoryFile(file) as memory:
                    yield from _opened(rasterio, memory.name, values)
            else:
                yield from _opened(rasterio, file, values)
    except rasterio.errors.RasterioError as cause:
        raise DdcatError(f"it cannot be read: {first_line(cause)}") from cause


def _opened(rasterio: Any, address: str, values: tuple[int, int] | None) -> Iterator[Scene]:
    needed = "uint8" if values is None else "uint16"
    # other drivers, such as VRT, would read further files and addresses that the file names
    with rasterio.Env(GDAL_CACHEMAX=_CACHE), rasterio.open(address, driver="GTiff") as file:
        if file.count < 3 or any(kind != needed for kind in file.dtypes[:3]):
            raise DdcatError(
                f"it is a TIFF of {file.count} bands of {file.dtypes[0]}: expected 3 or more, the first three of {needed}"
            )
        yield Scene(file, values)


def _rasterio() -> Any:
    with needing("geo"):
        import rasterio  # noqa: PLC0415 -- other images need none
        import rasterio.errors  # noqa: PLC0415
    return rasterio
