"""GeoTIFFs of any size, read and written part by part by rasterio; masks keep the place on earth."""

import contextlib
import io
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.atomic_files import written_aside
from ddcat.bands import chosen_bands
from ddcat.classes import Classes, colour_table
from ddcat.error_text import first_line
from ddcat.errors import DdcatError, WriteError
from ddcat.extras import needing
from ddcat.image_pixels import table_of_16_bits
from ddcat.predict.tiff_directories import has_more_directories

__all__ = ["Scene", "SceneError", "is_tiff", "opened_scene"]

U8 = npt.NDArray[np.uint8]
_CACHE = 2**26  # bytes that GDAL keeps of what it read and of what it is to write
_BLOCK = 256  # side of the blocks of a mask
_MOST_DIRECTORIES = 1000  # of an image, its overviews and their masks
_AS_RGB = (None, "YCbCr")  # colours that GDAL converts without a guess


def is_tiff(content: bytes) -> bool:
    """Return whether a file begins as a TIFF or a BigTIFF."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class SceneError(DdcatError):
    """A GeoTIFF is damaged or of another kind; the message does not name it."""


class Scene:
    """
    An open GeoTIFF.

    Attributes
    ----------
    height, width : int
    block_bytes : int
        Memory of the smallest part that can be read.
    """

    def __init__(self, file: Any, values: tuple[int, int] | None, bands: tuple[int, ...]) -> None:
        self._file, self._bands = file, bands
        rows, columns = file.block_shapes[0]
        together = int(file.count) if file.profile.get("interleave") == "pixel" else 1
        self.block_bytes = int(rows) * int(columns) * together * np.dtype(file.dtypes[0]).itemsize
        self._table = None if values is None else table_of_16_bits(values)
        self.height, self.width = int(file.height), int(file.width)

    def read(self, top: int, left: int, height: int, width: int) -> U8:
        """Read a part of the image: (height, width, C) uint8."""
        try:
            bands = self._file.read(self._bands, window=((top, top + height), (left, left + width)))
        except _rasterio().errors.RasterioError as cause:
            raise SceneError(f"it cannot be read: {_reason(cause, self._file.name)}") from cause
        pixels = bands.transpose(1, 2, 0)
        return np.ascontiguousarray(pixels if self._table is None else self._table[pixels])

    def write_mask(self, path: Path, bands: Iterable[U8], classes: Classes) -> None:
        """Write a mask, whole or not at all, from bands of rows: a GeoTIFF of one band with the scene's CRS and transform."""
        rasterio = _rasterio()
        with written_aside(path) as aside:
            try:
                with rasterio.open(aside, "w", **self._mask_profile()) as mask:
                    written = _fill(mask, bands, classes)
                if _checksum_of(aside) == written:  # GDAL says nothing of what fails when the file is closed
                    return
                cause = None
            except rasterio.errors.RasterioError as error:
                cause = error
            free = shutil.disk_usage(path.parent).free
            raise WriteError(f"cannot write {path}: {free / 1e6:.1f} MB are free there; free some space") from cause

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


def _fill(mask: Any, bands: Iterable[U8], classes: Classes) -> int:
    """Write a mask; return the checksum of its rows."""
    mask.write_colormap(1, {label: tuple(colour) for label, colour in enumerate(colour_table(classes).tolist())})
    checksum = 0
    for top, rows in _whole_blocks(bands):
        mask.write(rows, 1, window=((top, top + len(rows)), (0, mask.width)))
        checksum = zlib.crc32(np.ascontiguousarray(rows).data, checksum)
    return checksum


def _checksum_of(path: Path) -> int:
    checksum = 0
    with _rasterio().open(path) as mask:
        for top in range(0, mask.height, _BLOCK):
            checksum = zlib.crc32(mask.read(1, window=((top, min(top + _BLOCK, mask.height)), (0, mask.width))), checksum)
    return checksum


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
def opened_scene(
    file: str | bytes, values: tuple[int, int] | None = None, bands: int | Sequence[int] | None = None
) -> Iterator[Scene]:
    """
    Open a GeoTIFF.

    Parameters
    ----------
    file : str or bytes
        Its address, or its content.
    values : (int, int), optional
        Of files of 16 bits a band: they become 0 and 255. By default those are refused, with it those of 8 bits.
    bands : int or sequence of int, optional
        See `ddcat.preprocess.FileRule`. By default the first three, which are red, green and blue.

    Raises
    ------
    SceneError
        Where the file is damaged or of another kind.
    DdcatError
        Where rasterio is missing.
    """
    rasterio = _rasterio()
    name = "" if isinstance(file, bytes) else file
    with contextlib.suppress(OSError), io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as opened:
        if has_more_directories(opened, _MOST_DIRECTORIES):
            raise SceneError(f"it has more than {_MOST_DIRECTORIES} directories, expected one image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # then the mask has no place, either
            if isinstance(file, bytes):
                with rasterio.MemoryFile(file) as memory:
                    name = memory.name
                    yield from _opened(rasterio, memory.name, values, bands)
            else:
                yield from _opened(rasterio, file, values, bands)
    except rasterio.errors.RasterioError as cause:
        raise SceneError(f"it cannot be read: {_reason(cause, name)}") from cause


def _reason(error: Exception, name: str) -> str:
    """Return what GDAL says of a file, without its name."""
    said = first_line(error.__cause__ or error)  # rasterio's own error points to that of GDAL
    short = re.escape(Path(name).name)
    shown = rf"'?(?:{re.escape(name)}|(?<![\w.]){short})(?:'|(?=[:,]))"
    return re.sub(shown, "", said.rpartition(f"{Path(name).name}:")[2]).strip(" ,:")


def _opened(rasterio: Any, address: str, values: tuple[int, int] | None, bands: int | Sequence[int] | None) -> Iterator[Scene]:
    needed = "uint8" if values is None else "uint16"
    # other drivers, such as VRT, would read further files and addresses that the file names
    with rasterio.Env(GDAL_CACHEMAX=_CACHE), rasterio.open(address, driver="GTiff") as file:
        if bands is None and (file.count < 3 or any(kind != needed for kind in file.dtypes[:3])):
            found = f"{file.count} band{'s' * (file.count > 1)} of {file.dtypes[0]}"
            raise SceneError(f"it is a TIFF of {found}: expected 3 or more, the first three of {needed}")
        try:
            chosen = chosen_bands(file.count, (1, 2, 3) if bands is None else bands)
        except ValueError as cause:
            raise SceneError(str(cause)) from cause
        if others := sorted({file.dtypes[band - 1] for band in chosen} - {needed}):
            hint = "; for uint16, train with data.values" if values is None else ", for data.values is set"
            raise SceneError(f"it is a TIFF of {others[0]}: expected {needed}{hint}")
        space, bits = file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE"), file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
        if space not in _AS_RGB:
            raise SceneError(f"its colours are {space}: expected RGB")
        if bits is not None and values is None:
            raise SceneError(f"it has {bits} bits a band, expected 8")
        if file.subdatasets:
            raise SceneError(f"it has {len(file.subdatasets)} images, expected one")
        yield Scene(file, values, chosen)


def _rasterio() -> Any:
    with needing("geo"):
        import rasterio  # noqa: PLC0415 -- other images need none
        import rasterio.errors  # noqa: PLC0415
    return rasterio
