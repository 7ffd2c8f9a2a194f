"""A bundle with a rule for tiles, and images for it."""

from pathlib import Path

import numpy as np
import pytest

from ddcat.bundle import Bundle, write_bundle
from ddcat.preprocess import Resize
from ddcat.tiles import Tiles
from tests.bundles import small_graph, small_manifest

TILES = Tiles(side=64, overlap=16)


def tiled_bundle(path: Path, resize: Resize | None = None) -> Bundle:
    content = small_graph()
    manifest = small_manifest(content, "tiled")
    rule = manifest.preprocessing.model_copy(update={"tiles": TILES, "resize": resize})
    return write_bundle(path, manifest.model_copy(update={"preprocessing": rule}), {"model.onnx": content})


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def geotiff(pixels: np.ndarray, **options: object) -> bytes:
    """A file of pixels, (H, W, bands), of half a metre each, in UTM."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    height, width, count = pixels.shape
    about = {"height": height, "width": width, "count": count, "dtype": str(pixels.dtype), "crs": "EPSG:32633"}
    place = rasterio.transform.from_origin(500_000, 5_400_000, 0.5, 0.5)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", transform=place, **about, **options) as file:
            file.write(pixels.transpose(2, 0, 1))
        content: bytes = memory.read()
        return content
