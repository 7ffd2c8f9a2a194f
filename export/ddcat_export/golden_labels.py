"""Labels of golden images for an engine that this machine builds and cannot run."""

from collections.abc import Mapping

from ddcat.engines import import_for
from ddcat.engines.base import Images
from ddcat.engines.golden import Example
from ddcat_export.precision_cast import simulated

__all__ = ["label_on_cpu"]


def label_on_cpu(graph: bytes, images: Mapping[str, Images]) -> tuple[tuple[Example, ...], str]:
    """
    Label images with ONNX Runtime on the CPU, from the graph that the engine was built from.

    fp16 and bf16, in which ONNX Runtime does not compute on a CPU, are computed in fp32 and rounded after each node.

    Parameters
    ----------
    graph : bytes
        A typed ONNX file.
    images : mapping of str to (H, W, 3) uint8
        By the names of `Example`.

    Returns
    -------
    examples : tuple of Example
    labelled_by : str
        The runtime, for the manifest.

    Raises
    ------
    EngineError
        Where ONNX Runtime is not installed, or does not run the graph.
    """
    runtime = import_for("ort", "ddcat.engines.onnxruntime", "the labels of golden images are computed by ONNX Runtime here: ")
    wide = simulated(graph)
    with runtime.OrtGraph(wide) as opened:
        examples = tuple(Example(name, image, opened.run(image[None]).labels[0]) for name, image in images.items())
        described = opened.description["runtime"]
    return examples, f"{described} on a CPU{'' if wide == graph else ', rounded after each node'}"
