"""An opened bundle in Python: `ddcat.open_bundle`."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat import bundle as bundles
from ddcat.bands import form_of, is_image
from ddcat.classes import Classes
from ddcat.confidence import NO_THRESHOLD, abstained
from ddcat.engines import open_engine
from ddcat.engines.answer_statistics import Statistics, golden_statistics
from ddcat.engines.base import Closable, Images, Outputs
from ddcat.engines.errors import EngineError, InputError
from ddcat.engines.golden import check_answers, read_golden
from ddcat.engines.tiled import TiledEngine
from ddcat.error_text import first_line
from ddcat.image_files import ImageFileError
from ddcat.image_pixels import table_of_16_bits
from ddcat.manifest import GOLDEN_TOLERANCE
from ddcat.preprocess import Preprocessed, preprocess, restore

__all__ = ["Predictor", "open_bundle"]


class Predictor(Closable):
    """
    An opened bundle, whose engine gives its golden images the labels that it gave when it was exported.

    Use it in a with block, or call `close`. As many threads as it has streams may use it at the same time.

    Parameters
    ----------
    bundle : Bundle
    threads : int, optional
        Threads that compute. Default: the physical cores.
    streams : int
        Threads that may use it at the same time: see `ddcat.engines.open_engine`.

    Attributes
    ----------
    bundle : Bundle
        Its path, manifest and digest.
    streams : int
        At most as many as were asked for: an engine on a GPU has one.

    Raises
    ------
    EngineError
        Where the runtime is missing, does not load the graph, or gives the golden images other labels.
    """

    def __init__(self, bundle: bundles.Bundle, *, threads: int | None = None, streams: int = 1) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise EngineError(f"threads {threads!r}: expected a whole number of 1 or more, or None for all cores")
        self.bundle = bundle
        self._threads = threads
        self._engine = open_engine(bundle, threads=threads, streams=streams)
        self._opening = threading.Lock()
        self._tiled: tuple[int, TiledEngine] | None = None
        self._undivided: Predictor | None = None
        try:
            check_answers(bundle, self._engine, read_golden(bundle), tolerance=GOLDEN_TOLERANCE)
        except BaseException:
            self._engine.close()
            raise
        self.streams = min(streams, int(self._engine.description.get("streams", 1)))

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """Runtime, provider, precision, threads and other settings."""
        return self._engine.description

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes."""
        return self.bundle.manifest.class_table()

    def predict(self, image: str | Path | npt.NDArray[np.uint8 | np.uint16], *, abstain: bool = False) -> npt.NDArray[np.uint8]:
        """
        Segment an image.

        Parameters
        ----------
        image : path or (H, W, C) uint8, or uint16
            A JPEG, PNG or WebP file, for bands a TIFF, too; or pixels in RGB or of the bands. It becomes the engine's input by
            the rule of the bundle, as in training and in the gate: see `ddcat.preprocess`. uint16 has the values of a file of
            16 bits, which a rule with `values` brings to 8; uint8 has them already.
        abstain : bool
            Give no class to pixels whose confidence is not above the threshold of the bundle.

        Returns
        -------
        (H, W) uint8
            The class of each pixel, at the size of the image; 255 where it abstains.

        Raises
        ------
        InputError
            For a file that is no image, an array of another form, or a size that the engine does not take; where it is to
            abstain, and the bundle has no threshold.
        """
        threshold = self.threshold if abstain else None
        prepared = self._read(Path(image)) if isinstance(image, str | Path) else self._prepared(image)
        height, width, _ = prepared.pixels.shape
        cut = self.cuts(height, width)
        outputs = self.tiled().outputs(prepared.pixels) if cut else self.infer(prepared.pixels[None])
        confidence = None if outputs.confidence is None else outputs.confidence[0]
        return restore(abstained(outputs.labels[0], confidence, threshold), prepared.size)

    @property
    def threshold(self) -> float:
        """
        The confidence that a pixel must be above to be answered, where the engine is to abstain.

        Raises
        ------
        InputError
            Where the bundle has none.
        """
        rule = self.bundle.manifest.abstention
        if rule is None:
            raise InputError(f"{self.bundle.path}: {NO_THRESHOLD}")
        return rule.threshold

    def cuts(self, height: int, width: int) -> bool:
        """Return whether the bundle's rule cuts an image of some size, as prepared for the graph, into tiles."""
        return self.bundle.manifest.preprocessing.cuts(height, width)

    def tiled(self, *, batch: int = 1) -> TiledEngine:
        """
        Return the engine for images that are cut, which computes some tiles at once.

        Raises
        ------
        EngineError
            As `ddcat.engines.tiled.TiledEngine`.
        """
        with self._opening:
            if self._tiled is None or self._tiled[0] != batch:
                self._tiled = batch, TiledEngine(self.infer, self.bundle.manifest, batch=batch)
            return self._tiled[1]

    def undivided(self) -> "Predictor":
        """
        Return the bundle in an engine of one stream, whose threads all compute one batch; it is closed with this one.

        Raises
        ------
        EngineError
            As `Predictor`.
        """
        if self.streams == 1:
            return self
        with self._opening:
            if self._undivided is None:
                self._undivided = Predictor(self.bundle, threads=self._threads)
            return self._undivided

    def infer(self, images: Images) -> Outputs:
        """
        Segment a batch that is ready for the engine: nothing is resized here.

        Parameters
        ----------
        images : (N, H, W, C) uint8
            As `ddcat.preprocess.preprocess` makes them.

        Returns
        -------
        Outputs
            `labels` (N, H, W) uint8, and `logits` and `confidence` where the bundle was exported with them.

        Raises
        ------
        EngineError
        """
        return self._engine.infer(images)

    def _read(self, path: Path) -> Preprocessed:
        try:
            return preprocess(path.read_bytes(), self.bundle.manifest.preprocessing)
        except (OSError, ImageFileError) as cause:
            raise InputError(f"{path} cannot be read: {first_line(cause)}") from cause

    def _prepared(self, image: npt.NDArray[np.uint8 | np.uint16]) -> Preprocessed:
        rule = self.bundle.manifest.preprocessing
        deep = isinstance(image, np.ndarray) and image.dtype == np.uint16
        pixels = table_of_16_bits(rule.values)[image] if deep and rule.values is not None else image
        if not is_image(pixels, rule.channels):
            form = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            expected = f"(height, width, {rule.channels}) {form_of(rule.channels)}"
            if rule.values is not None:
                expected += ", or uint16 with the values of a file"
            hint = (
                "; the bundle has no values that become 0 and 255: bring it to 8 bits" if deep and rule.values is None else ""
            )
            raise InputError(f"image: expected a path or a uint8 array {expected}, got {form}{hint}")
        return preprocess(pixels, rule)

    def golden_statistics(self) -> list[Statistics]:
        """Return the statistics of the answers to the bundle's clean golden images; none where it has none."""
        return list(golden_statistics(self.bundle, self._engine, read_golden(self.bundle)))

    def close(self) -> None:
        """Free the runtime's memory. The engine cannot be used afterwards."""
        if self._undivided is not None:
            self._undivided.close()
        self._engine.close()


def open_bundle(
    path: str | Path,
    *,
    threads: int | None = None,
    streams: int = 1,
    trust: bundles.TrustPolicy = bundles.NO_TRUST_POLICY,
) -> Predictor:
    """
    Verify a bundle, load its engine, and replay its golden images.

    Parameters
    ----------
    path : path
        Directory that `ddcat.export` wrote.
    threads : int, optional
        Threads that compute. Default: the physical cores.
    streams : int
        Threads that may use the predictor at the same time, where the engine is on a CPU: its threads are divided among them.
    trust : TrustPolicy
        The proof that the bundle must bring before any of its bytes reaches a runtime: a signature, a digest, a passport.

    Raises
    ------
    BundleError
        Where a file is missing or altered, or the proof that `trust` requires is missing.
    EngineError
        Where the runtime is missing, does not load the graph, or gives the golden images other labels.
    """
    return Predictor(bundles.open_bundle(Path(path), trust), threads=threads, streams=streams)
