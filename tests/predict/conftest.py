"""Shared fixtures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle
from tests.bundles import build, bundle, cache, make_bundle, oracle, picture, with_golden

__all__ = ["build", "bundle", "cache", "make_bundle", "oracle", "picture"]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of twelve images, some of them below it, in two sizes."""
    rng = np.random.default_rng(0)
    for place in range(12):
        file = tmp_path / "scenes" / ("night" if place % 3 == 0 else "") / f"{place:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 7 - place % 2, 3), np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(9, 1)).save(file)
    return tmp_path / "scenes"


@pytest.fixture
def golden(tmp_path: Path, oracle: Callable, picture: np.ndarray) -> Bundle:
    return with_golden(tmp_path / "golden", oracle, picture)
