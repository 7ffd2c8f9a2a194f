"""A GeoTIFF through the engine: whole where it fits into a tile, else tile by tile, at the memory of a few rows of tiles."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ddcat.confidence import abstained
from ddcat.engines.answer_statistics import Statistics, class_pixels, describe
from ddcat.engines.predictor import Predictor
from ddcat.engines.tiled import label_bands
from ddcat.errors import DdcatError
from ddcat.geotiff import opened_scene
from ddcat.predict.records import Answer
from ddcat.predict.results import Results
from ddcat.predict.sources import Source
from ddcat.progress import progress
from ddcat.tiles import Band

__all__ = ["predict_scene"]

U8 = npt.NDArray[np.uint8]
_MOST_IN_MEMORY = 2**26  # pixels, for forms that need the whole mask
_MASK = "png"  # the form that is a GeoTIFF for a GeoTIFF


def predict_scene(
    opened: Predictor, source: Source, results: Results, *, batch: int = 1, threshold: float | None = None
) -> None:
    """
    Segment a GeoTIFF, and write its mask as a GeoTIFF with the same CRS and transform; the other forms as for any image.

    Raises
    ------
    DdcatError
        Where it cannot be read, has other bits than the bundle expects, the bundle resizes images, its engine takes neither
        the scene nor tiles of it, or a form needs more than 67 million pixels in memory; the message does not name the scene.
    """
    classes, rule = opened.classes, opened.bundle.manifest.preprocessing
    if rule.resize is not None:
        raise DdcatError("the bundle resizes images, but a TIFF is read in parts at its own size: use JPEG or PNG")
    others = [form for form in results.formats if form != _MASK]
    with opened_scene(source.address, rule.values, rule.bands) as scene:
        height, width = scene.height, scene.width
        if others and height * width > _MOST_IN_MEMORY:
            raise DdcatError(
                f"it has {height * width} pixels, and --format {others[0]} holds the whole mask in memory, at most "
                f"{_MOST_IN_MEMORY} pixels: use --format {_MASK} alone"
            )
        tiled = opened.tiled(batch=batch) if opened.cuts(height, width) else None
        whole = np.empty((height, width) if others else (0, 0), np.uint8)
        summed = _Sum(len(classes))
        with progress(f"predicting {source.name}", height, unit="rows") as done:

            def bands() -> Iterator[U8]:
                top = 0
                for band in label_bands(opened.infer, opened.bundle.manifest, tiled, height, width, scene.read):
                    labels = abstained(band.labels, band.confidence, threshold)
                    summed.add(band, labels)
                    if others:
                        whole[top : top + len(labels)] = labels
                    top += len(labels)
                    yield labels
                    done(len(labels))

            scene.write_mask(results.folder / "masks" / f"{source.stem}.tif", bands(), classes)
        statistics = summed.statistics()
        if others:
            pixels = scene.read(0, 0, height, width)
            answer = Answer(source.name, source.stem, whole, pixels, classes)
            results.add(answer, statistics, stamp=source.stamp, without={_MASK})
        else:
            results.note(source.name, (height, width), summed.pixels.tolist(), statistics, {}, stamp=source.stamp)


class _Sum:
    """The statistics of an answer from those of its bands, and the pixels of each class in the mask."""

    def __init__(self, classes: int) -> None:
        self.pixels = np.zeros(classes, np.int64)
        self._bands = list[tuple[int, Statistics]]()

    def add(self, band: Band, written: U8) -> None:
        self.pixels += class_pixels(written, len(self.pixels))
        self._bands.append((band.labels.size, describe(band.labels, len(self.pixels), band.confidence)))

    def statistics(self) -> Statistics:
        total = sum(size for size, _ in self._bands)
        tenths = [band.confidence for _, band in self._bands if band.confidence is not None]
        return Statistics(
            np.sum([band.classes for _, band in self._bands], 0),
            np.sum([band.boundaries for _, band in self._bands], 0),
            sum(size * band.density for size, band in self._bands) / total,
            np.sum(tenths, 0) if tenths else None,
            sum(size * band.mean_confidence for size, band in self._bands) / total,
        )
