"""Bundles that are loaded and warm."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat.bundle import ANYONE, Bundle, Trust, open_bundle
from ddcat_serve.engines import Engine, Outputs, open_engine
from ddcat_serve.engines.base import check_images
from ddcat_serve.errors import EngineError, ServeError

__all__ = ["ServedModel", "load_models"]


class ServedModel:
    """
    A bundle and its engine, which runs in a thread of its own so that requests never wait for one another's decoding.

    Parameters
    ----------
    bundle : Bundle
        What is known of it; nobody asks for its files any more.
    engine : Engine
        Opened from it.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self.engine = engine
        self.name = bundle.manifest.name
        self.classes = bundle.manifest.class_table()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{self.name}")

    async def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Segment a batch, (N, H, W, 3) uint8, when its turn comes; what the engine does not take is refused at once."""
        check_images(images, self.bundle.manifest.shapes)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.infer, images)

    def warm_up(self) -> None:
        """Run the smallest batch, or one of each size of a ladder: what cannot run fails before the first request."""
        shapes = self.bundle.manifest.shapes
        for height, width in shapes.sizes or [(shapes.height.minimum, shapes.width.minimum)]:
            labels = self.engine.infer(np.zeros((shapes.batch.minimum, height, width, 3), np.uint8)).labels
            if labels.max() >= len(self.classes):
                raise EngineError(
                    f"{self.bundle.path} gives label {labels.max()}, but its manifest names {len(self.classes)} classes"
                )

    def close(self) -> None:
        """Wait for the running batch, then free the engine."""
        self._thread.shutdown(cancel_futures=True)
        self.engine.close()


@contextlib.contextmanager
def load_models(
    paths: Sequence[Path], *, threads: int | None = None, trust: Trust = ANYONE
) -> Iterator[dict[str, ServedModel]]:
    """
    Verify, load and warm up bundles; close them at the end.

    Parameters
    ----------
    paths : sequence of Path
    threads : int, optional
        Of each engine; the physical cores by default.
    trust : Trust, optional
        What must be shown of who wrote them.

    Yields
    ------
    dict of str to ServedModel
        By the names in the manifests.

    Raises
    ------
    BundleError, EngineError
        For a bundle that is not whole or not to be trusted, or does not run.
    ServeError
        For two bundles of one name.
    """
    models: dict[str, ServedModel] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            model = _load(path, models, threads, trust)
            models[model.name] = model
            stack.callback(model.close)
            model.warm_up()
        yield models


def _load(path: Path, others: Mapping[str, ServedModel], threads: int | None, trust: Trust) -> ServedModel:
    bundle = open_bundle(path, trust)
    name = bundle.manifest.name
    if name in others:
        raise ServeError(f"{path} and {others[name].bundle.path} are both named {name!r}: a server needs different names")
    engine = open_engine(bundle, threads=threads)
    return ServedModel(dataclasses.replace(bundle, files={}), engine)  # the runtime has its own copy
