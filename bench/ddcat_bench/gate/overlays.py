"""Pictures of where an engine and its PyTorch model disagree most, for the gate's page."""

import base64
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddcat.bands import displayed
from ddcat.classes import IGNORED_COLOUR, Classes, colourise
from ddcat.engines import Engine
from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.attack.scoring import predict
from ddcat_bench.attack.suites import BIM
from ddcat_bench.gate.disagreement import Disagreement
from ddcat_bench.gate.pool import engine_labels
from ddcat_train.attacks import Model
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_8_bit, to_planes

__all__ = ["Overlay", "legend", "overlays"]

_LONGEST = 480  # pixels of a picture's longer side
_FLIP = (255, 0, 200)  # no class has it, and it shows on grey

U8 = npt.NDArray[np.uint8]


class Overlay(NamedTuple):
    """An image, clean or attacked, and pictures of what is made of it: titles and data URIs; none where no label differs."""

    caption: str
    pictures: tuple[tuple[str, str], ...]


def overlays(
    reference: Model, engine: Engine, dataset: Dataset, names: list[str], clean: Disagreement, *, images: int = 3
) -> tuple[Overlay, ...]:
    """
    Show the images on which most labels differ, clean and under BIM, n = 3, made on the PyTorch model, which is on the CPU.

    `clean` is the disagreement on the evaluated images as they are, in the order of `names`.
    """
    places = {pair.name: place for place, pair in enumerate(dataset.pairs)}
    shown: list[Overlay] = []
    for worst in np.argsort(-clean.differing, kind="stable")[:images]:
        sample = dataset.read(places[names[worst]])
        truth = torch.from_numpy(sample.labels).long()[None]
        victims = AttackBatch(to_planes(sample.image[None]), truth, torch.zeros(1, dtype=torch.int64))
        for label, made in (("clean", BIM._replace(counted=(0,))), ("BIM, n = 3", BIM._replace(counted=(3,)))):
            (attacked,) = attack(reference, made, victims)
            received = to_8_bit(attacked.images, victims.images)
            labels = predict(reference, received)[0].numpy(), engine_labels(engine, received)[0]
            caption = f"{names[worst]}, {label}"
            if (labels[0] == labels[1]).all():
                shown.append(Overlay(caption, ()))
                continue
            pixels = received[0].permute(1, 2, 0).numpy()  # (H, W, 3)
            shown.append(_overlay(caption, pixels, sample.labels, *labels, dataset.classes))
    return tuple(shown)


def legend(classes: Classes) -> list[tuple[str, str]]:
    """Return the legend of the pictures: names, and CSS colours."""
    colours = [*zip(classes.names, classes.palette, strict=True), ("ignored", IGNORED_COLOUR), ("label differs", _FLIP)]
    return [(name, f"rgb({red} {green} {blue})") for name, (red, green, blue) in colours]


def _overlay(caption: str, image: U8, truth: U8, reference: npt.NDArray[np.int64], engine: U8, classes: Classes) -> Overlay:
    differs = reference != engine
    grey = np.repeat((128 + image.mean(2, keepdims=True) / 4).astype(np.uint8), 3, axis=2)  # pale, so that flips stand out
    grey[differs] = _FLIP
    return Overlay(
        f"{caption}: {differs.mean():.3%} of the labels differ",
        (
            ("image", _address(displayed(image), smooth=True)),
            ("truth", _address(colourise(truth, classes))),
            ("PyTorch model", _address(colourise(reference, classes))),
            ("engine", _address(colourise(engine, classes))),
            ("where they differ", _address(grey)),
        ),
    )


def _address(pixels: U8, *, smooth: bool = False) -> str:
    """Encode pixels as a data URI: a photograph as lossy WebP, colours of classes as lossless WebP."""
    picture = Image.fromarray(pixels)
    factor = _LONGEST / max(picture.size)
    if factor < 1:
        width, height = (max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=not smooth, quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
