"""Golden images: the labels of an engine when it was exported, to compare with its labels now."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from ddcat.bundle import Bundle
from ddcat.engines.base import Engine, Images
from ddcat.engines.errors import EngineError

__all__ = [
    "FILE",
    "Example",
    "Replay",
    "check_answers",
    "compare",
    "label_images",
    "pack",
    "read_golden",
    "replay",
]

FILE = "golden.safetensors"


class Example(NamedTuple):
    """
    An image and the labels that an engine gave it.

    Attributes
    ----------
    name : str
        "clean.N" or "adversarial.N": the same picture, without and with attack.
    image : (H, W, C) uint8
    labels : (H, W) uint8
    """

    name: str
    image: Images
    labels: Images


class Replay(NamedTuple):
    """
    The difference of labels from the golden ones.

    Attributes
    ----------
    pixels, differing : int
        Pixels of all images, and those whose labels differ.
    worst : str
        The image with the largest share of differing pixels.
    worst_share : float
        That share, in [0, 1].
    """

    pixels: int
    differing: int
    worst: str
    worst_share: float

    @property
    def share(self) -> float:
        """Share of all pixels that differ, in [0, 1]."""
        return self.differing / self.pixels


def label_images(engine: Engine, images: Mapping[str, Images], *, batch: int = 1) -> tuple[Example, ...]:
    """
    Label images with an engine, one by one.

    Parameters
    ----------
    engine : Engine
    images : mapping of str to (H, W, C) uint8
        Keys are names of `Example`.
    batch : int
        The engine's minimum batch size; each image is repeated to fill it.
    """
    return tuple(
        Example(name, image, engine.infer(np.repeat(image[None], batch, 0)).labels[0]) for name, image in images.items()
    )


def pack(examples: Iterable[Example]) -> bytes:
    """Write examples as safetensors; the same examples give the same bytes."""
    tensors = {}
    for name, image, labels in examples:
        tensors[f"{name}.image"], tensors[f"{name}.labels"] = np.ascontiguousarray(image), np.ascontiguousarray(labels)
    return safetensors.numpy.save(tensors)


def read_golden(bundle: Bundle) -> tuple[Example, ...]:
    """
    Read the golden images of a bundle; () where it has none.

    Raises
    ------
    EngineError
        Where the file is not what `pack` writes.
    """
    golden = bundle.manifest.golden
    if golden is None:
        return ()
    try:
        tensors = safetensors.numpy.load(bundle.files[golden.file])
    except (SafetensorError, KeyError) as cause:  # the second: a type that numpy does not have
        raise EngineError(f"{bundle.path / golden.file} is not a safetensors file of uint8 ({cause}): export again") from cause
    examples, channels = [], bundle.manifest.preprocessing.channels
    for key in sorted(key for key in tensors if key.endswith(".image")):
        name, image, labels = key.removesuffix(".image"), tensors[key], tensors.get(f"{key.removesuffix('.image')}.labels")
        if labels is None or {image.dtype, labels.dtype} != {np.dtype(np.uint8)} or image.shape != (*labels.shape, channels):
            raise EngineError(f"{bundle.path / golden.file} holds no labels that fit {key}: export again")
        examples.append(Example(name, image, labels))
    names = {f"{kind}.{place}" for kind in ("clean", "adversarial") for place in range(golden.images)}
    if {example.name for example in examples} != names or 2 * len(examples) != len(tensors):
        raise EngineError(
            f"{bundle.path / golden.file} holds {len(examples)} images, where the manifest says {golden.images} and as many "
            "adversarial ones: export again"
        )
    return tuple(examples)


def replay(engine: Engine, examples: Iterable[Example], *, batch: int = 1) -> Replay:
    """
    Compare an engine's labels with golden ones.

    On another machine some near ties fall the other way; the caller decides how many may.

    Parameters
    ----------
    engine : Engine
    examples : iterable of Example
        At least one.
    batch : int
        As for `label_images`.
    """
    expected = {example.name: example for example in examples}
    answers = label_images(engine, {name: example.image for name, example in expected.items()}, batch=batch)
    return compare(answers, {name: example.labels for name, example in expected.items()})


def compare(examples: Iterable[Example], expected: Mapping[str, Images]) -> Replay:
    """Compare the labels of examples with the expected labels of the same names; other examples are ignored."""
    pixels = differing = 0
    worst, worst_share = "", -1.0
    for name, _, labels in examples:
        if name in expected:
            wrong = labels != expected[name]
            pixels, differing = pixels + wrong.size, differing + int(wrong.sum())
            if wrong.mean() > worst_share:
                worst, worst_share = name, float(wrong.mean())
    if not pixels:
        raise EngineError("there is no golden image to compare with")
    return Replay(pixels, differing, worst, worst_share)


def check_answers(
    bundle: Bundle, engine: Engine, examples: Sequence[Example], *, tolerance: float, hint: str = ""
) -> Replay | None:
    """
    Run each listed size, or the smallest, and compare the labels of golden images with the expected ones.

    Parameters
    ----------
    bundle : Bundle
    engine : Engine
    examples : sequence of Example
        Golden images of the bundle; may be empty.
    tolerance : float
        Largest share of golden labels that may differ: near ties fall either way on another machine.
    hint : str
        Ends the error message: what sets the tolerance.

    Returns
    -------
    Replay, or None where there are no examples

    Raises
    ------
    EngineError
        Where the engine fails, or gives other labels than when it was exported.
    """
    shapes, classes, channels = bundle.manifest.shapes, len(bundle.manifest.classes), bundle.manifest.preprocessing.channels
    for height, width in shapes.sizes or [(shapes.height.minimum, shapes.width.minimum)]:
        labels = engine.infer(np.zeros((shapes.batch.minimum, height, width, channels), np.uint8)).labels
        if labels.max() >= classes:
            raise EngineError(f"{bundle.path} gives label {labels.max()}, but its manifest names {classes} classes")
    if not examples:
        return None
    result = replay(engine, examples, batch=shapes.batch.minimum)
    if result.share > tolerance:
        golden = bundle.manifest.golden
        before = "it did" if golden is None or golden.labelled_by is None else f"{golden.labelled_by} did"
        raise EngineError(
            f"{bundle.path} does not answer as {before} when it was exported: {result.share:.2%} of its golden labels differ, "
            f"{result.worst_share:.2%} of {result.worst}; expected at most {tolerance:.2%}{hint}"
        )
    return result
