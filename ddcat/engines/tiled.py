"""An image that is larger than the tiles of its bundle, through the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ddcat.confidence import CONFIDENCE_OUTPUT
from ddcat.engines.base import Outputs
from ddcat.engines.checks import check_size
from ddcat.engines.errors import EngineError, InputError
from ddcat.manifest import Manifest
from ddcat.tiles import Band, Tiles, blended_bands, enlarged

__all__ = ["TiledEngine", "check_tile", "joined", "label_bands"]

_EQUAL = 0.995  # share of labels that the enlarged logits must give, too: fp16 and near ties aside

U8 = npt.NDArray[np.uint8]
Infer = Callable[[U8], Outputs]
Read = Callable[[int, int, int, int], U8]  # of top, left, height and width of a part of an image: its pixels


class TiledEngine:
    """
    Cuts images, and blends the logits of their tiles.

    The logits come at the resolution at which the network computes them. How the graph enlarges them is found on noise: the
    labels must be those that it gives itself. The confidence is that of the blended logits, if the engine has one.

    Parameters
    ----------
    infer : callable
        Of the engine: images (N, H, W, C) uint8 to outputs with logits.
    manifest : Manifest
        With `preprocessing.tiles`.
    batch : int
        Tiles that the engine computes at once; fewer where it takes fewer.
    corners : bool, optional
        How the graph enlarges logits, where that is known: the attribute of an earlier one. Default: it is found on noise.

    Raises
    ------
    EngineError
        Where the engine does not take a tile, or enlarges logits in a way that is not known.
    """

    def __init__(self, infer: Infer, manifest: Manifest, *, batch: int = 1, corners: bool | None = None) -> None:
        assert manifest.preprocessing.tiles is not None
        self.tiles: Tiles = manifest.preprocessing.tiles
        self._infer, self._manifest, self._least = infer, manifest, manifest.shapes.batch.minimum
        sure = any(output.name == CONFIDENCE_OUTPUT for output in manifest.outputs)
        heat = 1.0 if manifest.temperature is None else manifest.temperature.value
        self._temperature = heat if sure else None
        self._batch = max(self._least, min(batch, manifest.shapes.batch.maximum or batch))
        self.corners = self._found() if corners is None else corners

    def bands(self, height: int, width: int, read: Read) -> Iterator[Band]:
        """
        Label an image band after band: see `ddcat.tiles.blended_bands`.

        Parameters
        ----------
        height, width : int
        read : callable
            Of top, left, height and width of a part of the image: its pixels, (height, width, C) uint8.
        """
        size = check_tile(self._manifest, height, width)

        def logits_of(places: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
            images = np.stack([read(top, left, *size) for top, left in places])
            missing = max(0, self._least - len(images))
            return self._logits(np.concatenate([images, *[images[-1:]] * missing]))[: len(places)]

        return blended_bands(height, width, self.tiles, logits_of, batch=self._batch, temperature=self._temperature)

    def outputs(self, pixels: U8) -> Outputs:
        """Label an image, (H, W, C) uint8, that is in memory: outputs of a batch of one, without logits."""
        height, width, _ = pixels.shape
        return joined(self.bands(height, width, lambda y, x, rows, columns: pixels[y : y + rows, x : x + columns]))

    def _logits(self, images: U8) -> npt.NDArray[np.float32]:
        logits = self._infer(images).logits
        assert logits is not None  # the manifest says so
        return enlarged(logits, (images.shape[1], images.shape[2]), corners=self.corners)

    def _found(self) -> bool:
        side = self.tiles.side
        noise = np.random.default_rng(0).integers(
            0, 256, (self._least, -(-side // 8), -(-side // 8), self._manifest.preprocessing.channels), np.uint8
        )
        image = noise.repeat(8, 1).repeat(8, 2)[:, :side, :side]
        outputs = self._infer(np.ascontiguousarray(image))
        assert outputs.logits is not None
        shares = {
            corners: float((enlarged(outputs.logits, (side, side), corners=corners).argmax(1) == outputs.labels).mean())
            for corners in (True, False)
        }
        best = max(shares, key=lambda corners: shares[corners])
        if shares[best] < _EQUAL:
            raise EngineError(
                f"the logits give {shares[best]:.2%} of the labels of the graph, expected {_EQUAL:.1%}: tiles cannot be blended"
            )
        return best


def check_tile(manifest: Manifest, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the tiles of an image; raise InputError, which names the image's size, for too small ones."""
    assert manifest.preprocessing.tiles is not None
    rows, columns = (min(manifest.preprocessing.tiles.side, side) for side in (height, width))
    try:
        check_size(manifest.shapes.batch.minimum, rows, columns, manifest.shapes)
    except InputError as error:
        raise InputError(str(error).replace(f"Image is {columns} x {rows};", f"Image is {width} x {height};")) from None
    return rows, columns


def joined(bands: Iterable[Band]) -> Outputs:
    """Return the bands of an image as outputs of a batch of one, without logits."""
    found = list(bands)
    sure = [band.confidence for band in found if band.confidence is not None]
    labels = np.concatenate([band.labels for band in found])
    return Outputs(labels[None], None, np.concatenate(sure)[None] if sure else None)


def label_bands(
    infer: Infer, manifest: Manifest, tiled: TiledEngine | None, height: int, width: int, read: Read
) -> Iterator[Band]:
    """
    Label an image band after band.

    Parameters
    ----------
    infer, manifest
        Of the engine, as for `TiledEngine`.
    tiled : TiledEngine or None
        None: the image is not cut; the engine takes it whole, and there is one band.
    height, width, read
        As for `TiledEngine.bands`.
    """
    if tiled is not None:
        yield from tiled.bands(height, width, read)
    else:
        image = read(0, 0, height, width)[None]
        outputs = infer(np.repeat(image, manifest.shapes.batch.minimum, 0))
        yield Band(outputs.labels[0], None if outputs.confidence is None else outputs.confidence[0])
