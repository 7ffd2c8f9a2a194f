"""A model in an ONNX file of another program: what it is fed, what it gives, and how attacks see it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, inliner
from torch import Tensor, nn

from ddcat.classes import Classes
from ddcat.engines.errors import EngineError
from ddcat.engines.onnxruntime import OrtFile
from ddcat.error_text import first_line
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import Manifest
from ddcat_export.errors import ExportError
from ddcat_export.graph_segmenter import GraphSegmenter
from ddcat_export.twin.executor import Executor
from ddcat_train.networks import Segmenter
from ddcat_train.reference import Reference, ReferenceData

__all__ = ["OnnxFile", "Triple"]

Triple = tuple[float, float, float]

OLDEST, NEWEST = 11, 22
_NO_DATA = ReferenceData("folder", None)
_SIDE = 128  # pixels of the images that are tried where sizes are free: what most networks take


class _Axes(NamedTuple):
    """A tensor of images or logits."""

    name: str
    last: bool  # channels are the last axis, not the second


@dataclass(frozen=True)
class OnnxFile(Reference):
    """
    A segmentation model in an ONNX file: images that are normalised outside of it, to logits.

    Attributes
    ----------
    path : Path
    model : onnx.ModelProto
        As in the file, with its functions inlined, and the logits as its one output.
    digest : str
        SHA-256 of the file, and of those that hold its weights, if any.
    mean, std : (float, float, float)
        It is fed (image / 255 - mean) / std, in RGB.
    output : str
        The output of the file that it was asked for.
    images, logits : _Axes
    size : (height, width) or None
        The only size that it takes; None: they are free.
    any_batch : bool
        False if it takes one image at a time.
    """

    path: Path
    model: onnx.ModelProto
    digest: str
    named: Classes
    mean: Triple
    std: Triple
    output: str
    images: _Axes
    logits: _Axes
    size: tuple[int, int] | None
    any_batch: bool
    trained_on: ReferenceData

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        classes: Classes,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float = 1 / 255,
        output: str | None = None,
        data: ReferenceData = _NO_DATA,
    ) -> "OnnxFile":
        """
        Read a file, and try it in ONNX Runtime.

        Parameters
        ----------
        path : path
        classes : Classes
        mean, std : three floats
            It is fed (image * scale - mean) / std, of RGB images with levels of 0 to 255.
        scale : float
        output : str, optional
            The output that holds the logits, where there are several.
        data : ReferenceData

        Raises
        ------
        ExportError
            Where it is no such model: naming what it is, and what to do.
        """
        path = Path(path)
        model, digest = _load(path)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or scale <= 0:
            raise ExportError(f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0")
        if 255 * scale <= 1 < max(map(abs, mean)):
            raise ExportError(
                f"mean {tuple(mean)} is in levels of 0 to 255, and images are divided by 255 first: use --scale 1, or divide "
                "mean and std by 255"
            )
        if 255 * scale > 2 and 0 < max(map(abs, mean)) <= 1:
            raise ExportError(
                f"mean {tuple(mean)} is in [0, 1], and scale {scale:g} leaves images in levels of 0 to 255: leave scale out"
            )
        graph = model.graph
        images, sides = _images(path, graph)
        chosen = _output(path, graph, output)
        logits = _logits(path, model, chosen, len(classes), images)
        size = None if None in sides[1:] else (int(sides[1] or 0), int(sides[2] or 0))
        if size is None and sides[1:] != (None, None):
            raise ExportError(f"{path} has one free side only: expected a fixed size, or free height and width")
        first, second, third = (float(value / (255 * scale)) for value in mean)
        factors = tuple(float(value / (255 * scale)) for value in std)
        file = cls(
            path, model, digest, classes, (first, second, third), (factors[0], factors[1], factors[2]), chosen, images,
            _Axes(logits, False), size, True, data,
        )  # fmt: skip
        return file._tried(sides[0])

    @classmethod
    def of_manifest(cls, manifest: Manifest, path: Path) -> "OnnxFile":
        """
        Read the file that a bundle was made from.

        Raises
        ------
        ExportError
        """
        preprocessing = manifest.preprocessing
        return cls.read(
            path, classes=manifest.class_table(), mean=preprocessing.mean, std=preprocessing.std,
            output=manifest.source.output, data=ReferenceData.of_manifest(manifest),
        )  # fmt: skip

    @property
    def classes(self) -> Classes:
        """Names and colours of its classes, as they were given."""
        return self.named

    @property
    def data(self) -> ReferenceData:
        """The data set that was given."""
        return self.trained_on

    @property
    def method(self) -> str:
        """That nobody says how it was trained."""
        return "ONNX file"

    @property
    def architecture(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def is_quantised(self) -> bool:
        """True if its graph holds quantise steps."""
        return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.model.graph.node)

    def sha256(self) -> str:
        """Return the hash of the file, in hexadecimal."""
        return self.digest

    def segmenter(self) -> Segmenter:
        """
        Make the network that torch computes, with gradients.

        Raises
        ------
        ExportError
            Naming what of its graph the executor does not support.
        """
        return GraphSegmenter(_Fed(self, Executor(self.model, (self.logits.name,))), classes=len(self.classes))

    def runtime_segmenter(self) -> Segmenter:
        """Make the network that ONNX Runtime computes, without gradients: the file as its author knows it."""
        return GraphSegmenter(_Fed(self, _InRuntime(self.model)), classes=len(self.classes))

    def _tried(self, batch: int | None) -> "OnnxFile":
        """Run it, to know the form of its logits, and if it takes several images where it states one."""
        height, width = self.size or (_SIDE, _SIDE)
        single = self.run((1 if batch is None else batch, height, width))
        if single.ndim != 4 or len(self.classes) not in (single.shape[1], single.shape[3]):
            raise ExportError(
                f"{self.path} returns {self.output} of shape {tuple(single.shape)}: expected logits of {len(self.classes)} "
                "channels, one for each class of --classes"
            )
        known = dataclasses.replace(self, logits=_Axes(self.logits.name, single.shape[1] != len(self.classes)))
        if batch is None:
            return known
        if batch != 1:
            raise ExportError(f"{self.path} takes {batch} images at a time: expected one, or a free batch; export it again")
        freed = dataclasses.replace(known, model=_freed(self.model, self.images.name))
        try:
            several = freed.run((2, height, width))
        except (ExportError, EngineError):
            return dataclasses.replace(known, any_batch=False)
        takes_two = several.shape[0] == 2 and np.allclose(several[:1], several[1:])
        return freed if takes_two else dataclasses.replace(known, any_batch=False)

    def run(self, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
        """
        Try it in ONNX Runtime, on grey images of (batch, height, width), and return its logits.

        Raises
        ------
        ExportError
            Where it does not take such images.
        """
        count, height, width = shape
        grey = torch.full((count, 3, height, width), 0.5)
        try:
            logits: npt.NDArray[np.float32] = _InRuntime(self.model)(_fed(self, grey)).numpy()
        except EngineError as cause:
            raise ExportError(f"{self.path} fails on images of {height}x{width}: {cause}") from cause
        return logits


def _fed(file: OnnxFile, images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (file.mean, file.std))
    fed = (images - mean) / std
    return fed.permute(0, 2, 3, 1) if file.images.last else fed


class _Fed(nn.Module):
    """Feeds images (N, 3, H, W) in [0, 1] to a graph, and returns its logits (N, K, h, w)."""

    def __init__(self, file: OnnxFile, graph: nn.Module) -> None:
        super().__init__()
        self._file, self.graph = file, graph

    def forward(self, images: Tensor) -> Tensor:
        fed = _fed(self._file, images)
        if isinstance(self.graph, Executor):
            logits: Tensor = self.graph({self._file.images.name: fed})[self._file.logits.name]
        else:
            logits = self.graph(fed)
        return logits.permute(0, 3, 1, 2) if self._file.logits.last else logits


class _InRuntime(nn.Module):
    """A graph of one input and one output in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._graph = OrtFile(model.SerializeToString())
        self._input = _inputs(model.graph)[0].name

    def __deepcopy__(self, memo: dict[int, Any]) -> "_InRuntime":
        return self  # a session is not copied, and nothing changes it

    def forward(self, values: Tensor) -> Tensor:
        (result,) = self._graph.run({self._input: values.contiguous().numpy()}).values()
        return torch.from_numpy(result)


def _load(path: Path) -> tuple[onnx.ModelProto, str]:
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
        others = sorted(
            {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
        )
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        digest = sha256_of_bytes(b"".join([content, *((path.parent / name).read_bytes() for name in others)]))
    except Exception as cause:  # of ONNX, protobuf and the system: they share no base
        raise ExportError(f"{path} cannot be read as an ONNX file: {first_line(cause)}") from cause
    if not model.graph.node:
        raise ExportError(f"{path} cannot be read as an ONNX file: it holds no graph")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OLDEST <= opset <= NEWEST:
        raise ExportError(f"{path} has opset {opset}: expected {OLDEST} to {NEWEST}; export it again with opset_version=17")
    model = inliner.inline_local_functions(model) if model.functions else model
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(f"{path} holds {', '.join(foreign)}: expected only operators of ONNX itself")
    return model, digest


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _described(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower().replace("float", "float32", 1)
    kind = kind.replace("float3216", "float16")
    axes = ", ".join(axis.dim_param or str(axis.dim_value or "?") for axis in value.type.tensor_type.shape.dim)
    return f"{value.name}, {kind} ({axes})"


def _images(path: Path, graph: onnx.GraphProto) -> tuple[_Axes, tuple[int | None, int | None, int | None]]:
    """Return its one input, and the batch, height and width that it states."""
    inputs = _inputs(graph)
    if len(inputs) != 1:
        raise ExportError(f"{path} has the inputs {', '.join(value.name for value in inputs)}: expected one, for images")
    (value,) = inputs
    sides = [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(sides) != 4:
        raise ExportError(f"{path} takes {_described(value)}: expected float32 images (N, 3, H, W), already normalised")
    if sides[1] == 3 or (sides[1] is None and sides[3] != 3):
        return _Axes(value.name, False), (sides[0], sides[2], sides[3])
    if sides[3] == 3:
        return _Axes(value.name, True), (sides[0], sides[1], sides[2])
    raise ExportError(f"{path} takes {_described(value)}: expected images of 3 channels, RGB")


def _output(path: Path, graph: onnx.GraphProto, asked: str | None) -> str:
    names = [value.name for value in graph.output]
    if asked is None and len(names) > 1:
        raise ExportError(f"{path} has the outputs {', '.join(names)}: use --output NAME for the one that holds the logits")
    chosen = names[0] if asked is None else asked
    if chosen not in names:
        raise ExportError(f"--output {chosen}: {path} has {', '.join(names)}")
    return chosen


def _logits(path: Path, model: onnx.ModelProto, output: str, classes: int, images: _Axes) -> str:
    """Make the logits the one output of the model; a softmax over the classes that ends it is left out."""
    graph = model.graph
    value = next(value for value in graph.output if value.name == output)
    if value.type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        raise ExportError(
            f"{path} returns {_described(value)}: expected logits in float32, which the gate needs; export it without the "
            "argmax at its end"
        )
    makers = {name: node for node in graph.node for name in node.output}
    name = output
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    last = makers.get(name)
    if last is not None and last.op_type == "Sigmoid":
        raise ExportError(
            f"{path} ends in a Sigmoid, whose masks may overlap: expected logits, whose largest one decides the label"
        )
    if last is not None and last.op_type == "Softmax":
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), -1 if opset >= 13 else 1)
        if axis in (3, -1) if images.last else (axis in (1, -3) and opset >= 13):
            name = last.input[0]  # the largest stays the largest, and attacks need what comes before
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return name


def _freed(model: onnx.ModelProto, images: str) -> onnx.ModelProto:
    """Take away that the batch is one."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    value = next(value for value in changed.graph.input if value.name == images)
    value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return changed
