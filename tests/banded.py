"""Data sets of other bands than three, written by tests, and runs that are trained on them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

import ddcat
from ddcat_train.data.classes_file import classes_yaml
from tests.bundles import CLASSES

__all__ = ["VALUES", "bands_of", "encoded", "settings", "trained", "write_banded"]

VALUES = (100, 4195)  # of 16 bits, that become 0 and 255
LAYOUT = {1: "grey.png", 4: "rgba.png", 5: "five.tif"}


def bands_of(
    count: int, seed: int = 0, size: tuple[int, int] = (48, 56)
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """An image of some bands, (H, W, C), and its labels, which its last band tells."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 4, (size[0] // 8, size[1] // 8))
    labels = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pixels = random.integers(100, 4195, (*size, count)).astype(np.uint16)
    pixels[..., -1] = 500 + 900 * coarse.repeat(8, 0).repeat(8, 1) + random.integers(0, 300, labels.shape)
    return pixels, labels


def encoded(path: Path, pixels: npt.NDArray[np.uint16 | np.uint8], **place: Any) -> Path:
    """Write an image: a TIFF, or a PNG of one, three or four bands."""
    if path.suffix == ".tif":
        import rasterio  # noqa: PLC0415 -- not everybody has it

        height, width, count = pixels.shape
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype.name, **place
        ) as file:
            file.write(pixels.transpose(2, 0, 1))
        return path
    stored = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(stored))
    return path


def write_banded(root: Path, count: int) -> Path:
    """A folder with six images to train on and three to evaluate on."""
    suffix = LAYOUT[count].partition(".")[2]
    for split, images in (("train", 6), ("val", 3)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for place in range(images):
            pixels, labels = bands_of(count, place + 100 * (split == "val"))
            encoded(root / f"images/{split}/{place}.{suffix}", pixels)
            Image.fromarray(labels).save(root / f"labels/{split}/{place}.png")
    (root / "classes.yaml").write_text(classes_yaml(CLASSES))
    return root


def settings(root: Path, count: int) -> list[str]:
    """Overrides of a preset for such a folder."""
    return [
        "data.name=folder", f"data.root={root}", f"data.bands={count}", f"data.values={list(VALUES)}",
        f"model.mean={[0.5] * count}", f"model.std={[0.25] * count}", "augment.crop=33", "model.width=4",
        "train.epochs=1", "train.batch_size=3", "train.evaluate_batch=2",
    ]  # fmt: skip


def trained(root: Path, out: Path, count: int, *others: str) -> Path:
    """Two steps of DDC-AT on such a folder."""
    ddcat.train("scenes-ddcat", out, overrides=[*settings(root, count), *others], device="cpu")
    return out
