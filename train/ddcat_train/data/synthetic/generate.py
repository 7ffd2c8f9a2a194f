"""Writing of the generated scenes, in the layout of Pascal VOC."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ddcat.atomic_files import atomic_directory
from ddcat.classes import colour_table
from ddcat_train.data.classes_file import CLASSES_FILE, classes_yaml
from ddcat_train.data.dataset import U8
from ddcat_train.data.synthetic.render import SCENE_CLASSES, render

__all__ = ["write_scenes"]


def write_scenes(
    out: Path,
    *,
    train: int = 500,
    val: int = 100,
    size: tuple[int, int] = (96, 96),
    seed: int = 0,
    advance: Callable[[int], object] = lambda scenes: None,
) -> None:
    """
    Write generated scenes, which `open_dataset("scenes", out, ...)` reads; the whole folder or nothing.

    Scene `index` of a split depends on the seed, the split and `index` alone, not on how many there are.

    Parameters
    ----------
    out : Path
        Must not exist, or be an empty folder.
    train, val : int
        Scenes in each split; 1 or more.
    size : (height, width)
        32 pixels a side or more.
    seed : int
        Not negative.
    advance : callable
        Is told the number of scenes that were finished.

    Raises
    ------
    DdcatError
        Where `out` exists.
    """
    with atomic_directory(out) as aside:
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (aside / folder).mkdir(parents=True)
        for place, (split, count) in enumerate((("train", train), ("val", val))):
            names = [f"{split}_{index:05d}" for index in range(count)]
            for index, name in enumerate(names):
                image, labels = render(np.random.default_rng(np.random.SeedSequence([seed, place, index])), size)
                # without chroma subsampling, which would smear thin things
                Image.fromarray(image).save(aside / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
                _write_labels(aside / "SegmentationClass" / f"{name}.png", labels)
                advance(1)
            lines = "".join(f"{name}\n" for name in names)
            (aside / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(lines, encoding="utf-8")
        (aside / CLASSES_FILE).write_text(classes_yaml(SCENE_CLASSES), encoding="utf-8")


def _write_labels(path: Path, labels: U8) -> None:
    image = Image.fromarray(labels)
    image.putpalette(colour_table(SCENE_CLASSES).tobytes())  # turns it into mode P
    image.save(path)
