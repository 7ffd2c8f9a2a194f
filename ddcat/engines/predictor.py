"""An opened bundle in Python: `ddcat.open_bundle`."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat import bundle as bundles
from ddcat.classes import Classes
from ddcat.engines import open_engine
from ddcat.engines.base import Closable, Images, Outputs
from ddcat.engines.errors import InputError
from ddcat.engines.golden import check_answers, read_golden
from ddcat.error_text import first_line
from ddcat.image_files import ImageFileError, strip_metadata
from ddcat.manifest import GOLDEN_TOLERANCE

__all__ = ["Predictor", "open_bundle"]

_FORMATS = ("JPEG", "PNG", "WEBP")


class Predictor(Closable):
    """
    An opened bundle, whose engine gives its golden images the labels that it gave when it was exported.

    Use it in a with block, or call `close`. It may be used by one thread at a time.

    Parameters
    ----------
    bundle : Bundle
    threads : int, optional
        Threads that compute one batch. Default: the physical cores.

    Attributes
    ----------
    bundle : Bundle
        Its path, manifest and digest.

    Raises
    ------
    EngineError
        Where the runtime is missing, does not load the graph, or gives the golden images other labels.
    """

    def __init__(self, bundle: bundles.Bundle, *, threads: int | None = None) -> None:
        self.bundle = bundle
        self._engine = open_engine(bundle, threads=threads)
        try:
            check_answers(bundle, self._engine, read_golden(bundle), tolerance=GOLDEN_TOLERANCE)
        except BaseException:
            self._engine.close()
            raise

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        entries = self.bundle.manifest.classes
        return Classes(tuple(entry.name for entry in entries), tuple(entry.colour for entry in entries))

    def predict(self, image: str | Path | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """
        Segment an image.

        Parameters
        ----------
        image : path or (H, W, 3) uint8
            A JPEG, PNG or WebP file, or pixels in RGB. Pixels are taken as they are stored: nothing is resized or turned.

        Returns
        -------
        (H, W) uint8
            The class of each pixel.

        Raises
        ------
        InputError
            For a file that is no image, an array of another form, or a size that the engine does not take.
        """
        pixels = _read(Path(image)) if isinstance(image, str | Path) else image
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            form = f"{pixels.dtype} of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
            raise InputError(f"image: expected a path or a uint8 array (height, width, 3) in RGB, got {form}")
        labels: npt.NDArray[np.uint8] = self.infer(pixels[None]).labels[0]
        return labels

    def infer(self, images: Images) -> Outputs:
        """
        Segment a batch.

        Parameters
        ----------
        images : (N, H, W, 3) uint8
            RGB.

        Returns
        -------
        Outputs
            `labels` (N, H, W) uint8, and `logits` and `confidence` where the bundle was exported with them.

        Raises
        ------
        EngineError
        """
        return self._engine.infer(images)

    def close(self) -> None:
        """Free the runtime's memory. The engine cannot be used afterwards."""
        self._engine.close()


def open_bundle(
    path: str | Path, *, threads: int | None = None, trust: bundles.TrustPolicy = bundles.NO_TRUST_POLICY
) -> Predictor:
    """
    Verify a bundle, load its engine, and replay its golden images.

    Parameters
    ----------
    path : path
        Directory that `ddcat.export` wrote.
    threads : int, optional
        Threads that compute one batch. Default: the physical cores.
    trust : TrustPolicy
        The proof that the bundle must bring before any of its bytes reaches a runtime: a signature, a digest, a passport.

    Raises
    ------
    BundleError
        Where a file is missing or altered, or the proof that `trust` requires is missing.
    EngineError
        Where the runtime is missing, does not load the graph, or gives the golden images other labels.
    """
    return Predictor(bundles.open_bundle(Path(path), trust), threads=threads)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 -- arrays need no library of images

    try:
        content = strip_metadata(path.read_bytes())
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError as cause:
        raise InputError(f"{path} is no image: use JPEG, PNG or WebP") from cause
    except (OSError, ImageFileError, ValueError, Image.DecompressionBombError) as cause:
        raise InputError(f"{path} cannot be read: {first_line(cause)}") from cause
