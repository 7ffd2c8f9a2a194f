"""A differentiable twin of an engine: its ONNX file, run by torch, so that white-box attacks see what the engine computes."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx
import torch
from torch import Tensor, nn

from ddcat.bundle import Bundle
from ddcat_export.errors import ExportError
from ddcat_export.twin.executor import Executor

__all__ = ["Twin", "twin_of"]


class Twin(nn.Module):
    """
    The graph of an engine as a network of torch.

    It computes what the file says, with the file's own scales: quantise steps round, and let gradients pass straight through
    within their range.

    Parameters
    ----------
    content : bytes
        An ONNX file, of any precision, with input `image` and output `labels`.

    Raises
    ------
    ExportError
        Naming what it does not support.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        model = onnx.load_model_from_string(content)
        self._scores = _scores(model.graph)
        self._executor = Executor(model, (self._scores,))
        self.eval()

    @property
    def constants(self) -> frozenset[str]:
        """Names of the constants of the file that it computes with."""
        return self._executor.constants

    def forward(self, images: Tensor, constants: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """
        Compute the logits that the engine chooses its labels by.

        Parameters
        ----------
        images : (N, 3, H, W) float32
            RGB in [0, 1]. They are not rounded to bytes.
        constants : mapping of str to Tensor, optional
            Values in place of constants of the file, by their names.

        Returns
        -------
        (N, K, H, W) float32

        Raises
        ------
        ExportError
            Naming the node whose form or values it does not support: some are known only when an image comes.
        """
        pixels = (images * 255).permute(0, 2, 3, 1)  # the graph divides again
        scores: Tensor = self._executor({**constants, "image": pixels})[self._scores]
        return scores.reshape(len(images), -1, images.shape[2], images.shape[3])


def twin_of(bundle: Bundle) -> Twin:
    """
    Make the twin of a bundle's engine, and try it on the smallest image: some forms are known only then.

    Raises
    ------
    ExportError
        Naming what it does not support.
    """
    engine, shapes = bundle.manifest.engine, bundle.manifest.shapes
    # the ONNX file that the engine computes: the one that it loads, or that its plan was built from
    twin = Twin(bundle.files[engine.file if engine.file.endswith(".onnx") else engine.graph])
    height, width = shapes.sizes[0] if shapes.sizes is not None else (shapes.height.minimum, shapes.width.minimum)
    with torch.no_grad():
        twin(torch.zeros(shapes.batch.minimum, bundle.manifest.preprocessing.channels, height, width))
    return twin


def _scores(graph: onnx.GraphProto) -> str:
    """Name the value that the labels are the argmax of, over the classes of every pixel."""
    makers = {node.output[0]: node for node in graph.node}
    name = "labels"
    while name in makers:
        node = makers[name]
        name = node.input[0]
        if node.op_type == "ArgMax":
            return str(name)
    raise ExportError("the graph has no ArgMax over the classes: expected a graph that ddcat export wrote")
