from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat_train.data.dataset import U8
from tests.files import needed

Writer = Callable[..., None]


@pytest.fixture
def real_data() -> Path:
    """The folder of real samples."""
    return needed("data")


@pytest.fixture
def write_image() -> Callable[[Path, U8], None]:
    def write(path: Path, image: U8) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    return write


@pytest.fixture
def write_labels() -> Callable[[Path, U8], None]:
    """Write labels as a PNG whose palette is such that its colours or greys are never the indices."""

    def write(path: Path, labels: U8) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(labels)
        image.putpalette(np.roll(np.arange(256, dtype=np.uint8), 77).repeat(3).tobytes())
        image.save(path)

    return write


@pytest.fixture
def small_folder(tmp_path: Path, write_image: Writer, write_labels: Writer) -> Path:
    """A sound data set of the `folder` layout: 5 training pairs of 12x10 pixels, 3 classes."""
    root = tmp_path / "small"
    generator = np.random.default_rng(0)
    for index in range(5):
        labels = generator.integers(0, 3, (10, 12)).astype(np.uint8)
        labels[0, :2] = 255
        image = generator.integers(0, 256, (10, 12, 3)).astype(np.uint8)
        write_image(root / "images" / "train" / f"{index}.png", image)
        write_labels(root / "labels" / "train" / f"{index}.png", labels)
    (root / "classes.yaml").write_text("names: [ground, wall, roof]\n")
    return root
