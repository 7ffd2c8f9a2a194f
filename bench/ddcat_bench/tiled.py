"""Images that the rule of a bundle cuts into tiles: an engine, or a network, that labels them as they are served."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ddcat.engines import Engine, Outputs
from ddcat.engines.base import Images
from ddcat.engines.tiled import TiledEngine
from ddcat.manifest import Manifest
from ddcat.tiles import Tiles, tile_starts, tile_weights
from ddcat_train.attacks import Model

__all__ = ["as_served", "tiled_model"]


class _Served:
    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine, self._cuts = engine, manifest.preprocessing.cuts
        self._tiled = TiledEngine(engine.infer, manifest)

    def infer(self, images: Images) -> Outputs:
        if not self._cuts(*images.shape[1:3]):
            return self._engine.infer(images)
        return Outputs(np.concatenate([self._tiled.outputs(image).labels for image in images]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def as_served(engine: Engine, manifest: Manifest) -> Engine:
    """Return the engine, which gives labels alone of images that its bundle's rule cuts: those that a server gives."""
    return engine if manifest.preprocessing.tiles is None else cast(Engine, _Served(engine, manifest))


def tiled_model(model: Model, tiles: Tiles) -> Model:
    """Return a model that cuts images (N, 3, H, W) by a rule, and blends the logits of their tiles; gradients pass."""

    def blended(images: Tensor) -> Tensor:
        height, width = images.shape[2], images.shape[3]
        if not tiles.cut(height, width):
            return model(images)
        rows, columns = ([*zip(tile_starts(n, tiles), tile_weights(n, tiles), strict=True)] for n in (height, width))
        whole: Tensor | None = None
        for top, down in rows:
            for left, across in columns:
                part = slice(top, top + len(down)), slice(left, left + len(across))
                logits = model(images[:, :, *part])
                if whole is None:
                    whole = logits.new_zeros(len(images), logits.shape[1], height, width)
                whole[:, :, *part] += logits * torch.from_numpy(down[:, None] * across).to(logits.device)
        assert whole is not None  # an image has a tile
        return whole

    return blended
