"""
int8 as nodes of the graph: symmetric signed quantise and dequantise pairs around what multiplies maps by weights.

Weights are stored as int8 with one scale for each output channel; activations have one scale each; every zero point is 0,
for TensorRT takes nothing else. Input, normalisation, the first layer (the grey levels of an image are more than a signed byte
holds of them), the last one and all that comes of its logits stay fp32. Biases stay fp32, too: each runtime rounds them itself.

ONNX Runtime has quick kernels on x86 for unsigned activations only. For runtimes of a CPU there is a second form: bytes with
zero point 0 behind a ReLU, 128 elsewhere, and a pair behind every layer, without which ONNX Runtime computes it in fp32.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import LOGITS, check_graph, set_constants

__all__ = ["check_quantised", "layers_of", "normalise_matmuls", "quantise", "quantised_tensors"]

_POSITIVE = ("Relu", "Clip")  # the latter of ReLU6; a layer computes them in one go
_SIGNED, _UNSIGNED, _MIDDLE = "int8_zero", "uint8_zero", "uint8_middle"  # zero points


class _Plan(NamedTuple):
    """Which layers compute in int8, and which activations are rounded for them."""

    layers: dict[str, onnx.NodeProto]  # by name
    points: set[str]


def layers_of(graph: bytes) -> tuple[str, ...]:
    """
    Name the nodes that can compute in int8, in the order of the graph.

    They are the convolutions and the products of maps with a weight, among them those of the factorised head; not the first
    convolution, not the last layer, and no product with averages or interpolation.
    """
    return tuple(_layers(_move_weights_to_rhs(onnx.load_model_from_string(graph))))


def quantised_tensors(graph: bytes) -> tuple[str, ...]:
    """Name all tensors whose ranges `quantise` may ask for, whichever layers are float."""
    model = _move_weights_to_rhs(onnx.load_model_from_string(graph))
    both = (_plan(model, (), unsigned=unsigned).points for unsigned in (False, True))
    return tuple(sorted(set().union(*both)))


def normalise_matmuls(graph: bytes) -> bytes:
    """Write products of a weight and maps as products of maps and a weight, so that each output can have its scale."""
    content: bytes = _move_weights_to_rhs(onnx.load_model_from_string(graph)).SerializeToString(deterministic=True)
    return content


def quantise(graph: bytes, ranges: Mapping[str, float], *, float_layers: Collection[str] = (), unsigned: bool = False) -> bytes:
    """
    Quantise a typed fp32 graph.

    Parameters
    ----------
    graph : bytes
        From `build_graph`.
    ranges : mapping of str to float
        The largest magnitude of each tensor of `quantised_tensors`: see `ddcat_export.calibration`.
    float_layers : collection of str
        Layers of `layers_of` that stay fp32.
    unsigned : bool
        Write the form for runtimes of a CPU instead of the one for all runtimes.

    Returns
    -------
    bytes
        The same for the same arguments; checked by `check_quantised`.

    Raises
    ------
    ExportError
        Where nothing can be quantised, a layer is not known, or a range is not finite.
    """
    model = _move_weights_to_rhs(onnx.load_model_from_string(graph))
    plan = _plan(model, float_layers, unsigned=unsigned)
    if not plan.layers:
        raise ExportError("no layer is left to compute in int8: use fp32 for this network")
    writer = _Writer(model, plan, ranges, unsigned=unsigned)
    for node in list(model.graph.node):
        writer.write(node)
    writer.finish()
    check_quantised(model, unsigned=unsigned)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check_quantised(model: onnx.ModelProto, *, unsigned: bool = False) -> None:
    """
    Refuse what TensorRT would not take: a zero point that is not 0, another type than int8, an activation with several scales.

    Parameters
    ----------
    model : onnx.ModelProto
    unsigned : bool
        Allow uint8 activations whose zero point is 0 or 128: the form for a CPU.

    Raises
    ------
    ExportError
        Naming the node.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantised = False
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        quantised = True
        if len(node.input) != 3 or not {*node.input[1:]} <= constants.keys():
            raise ExportError(f"{node.name} has a scale or zero point that is not a constant of the graph")
        scales, zeros = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        weight = node.input[0] in constants
        byte = unsigned and not weight and zeros.dtype == np.uint8
        if zeros.dtype != np.int8 and not byte:
            raise ExportError(f"{node.name} quantises to {zeros.dtype}, expected int8: TensorRT accepts nothing else")
        if np.any(zeros) and not (byte and np.all(zeros == 128)):
            raise ExportError(f"{node.name} has zero point {zeros.max()}, expected 0: TensorRT accepts nothing else")
        if not weight and scales.ndim:
            raise ExportError(f"{node.name} has {scales.size} scales for an activation, expected one")
        if scales.dtype != np.float32 or not np.all(np.isfinite(scales) & (scales > 0)):
            raise ExportError(f"{node.name} has a scale that is not a finite, positive float32")
    if not quantised:
        raise ExportError("nothing in the graph is quantised")
    check_graph(model, "int8")


class _Writer:
    """Writes the nodes of a graph anew, with pairs where the plan has them; what reads a rounded tensor reads its bytes."""

    def __init__(self, model: onnx.ModelProto, plan: _Plan, ranges: Mapping[str, float], *, unsigned: bool) -> None:
        self.graph, self.plan, self.ranges, self.unsigned = model.graph, plan, ranges, unsigned
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        # of one scale with its source, so that it runs on the bytes
        self.pooled = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
        self.positive = {node.output[0] for node in model.graph.node if node.op_type in _POSITIVE}
        self.nodes: list[onnx.NodeProto] = []
        self.rounded: dict[str, str] = {}  # tensors and weights, and what stands for them
        self.constants: dict[str, onnx.TensorProto] = {}
        for name, zero in ((_SIGNED, np.int8(0)), (_UNSIGNED, np.uint8(0)), (_MIDDLE, np.uint8(128))):
            self.constant(name, np.asarray(zero))

    def write(self, node: onnx.NodeProto) -> None:
        if node.name in self.plan.layers and node.input[1] not in self.rounded:
            self.weight(node.input[1], axis=0 if node.op_type == "Conv" else 1)
        keeps_weight = node.op_type in ("Conv", "MatMul") and node.name not in self.plan.layers
        node.input[:] = [name if keeps_weight and name in self.weights else self.rounded.get(name, name) for name in node.input]
        self.nodes.append(node)
        for output in self.plan.points.intersection(node.output):
            self.activation(output)

    def activation(self, tensor: str) -> None:
        source = self.pooled.get(tensor, tensor)
        largest, positive = self.ranges.get(source, float("nan")), self.unsigned and source in self.positive
        if not np.isfinite(largest):
            raise ExportError(f"the range of {source} is {largest}: calibrate on images like those of the training")
        levels, zero = (255, _UNSIGNED) if positive else (127, _MIDDLE if self.unsigned else _SIGNED)
        scale = self.constant(f"{tensor}_scale", np.asarray(largest / levels or 1.0, np.float32))
        byte, rounded = f"{tensor}_byte", f"{tensor}_rounded"
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, zero], [byte], f"{tensor}/quantise"))
        self.nodes.append(helper.make_node("DequantizeLinear", [byte, scale, zero], [rounded], f"{tensor}/dequantise"))
        self.rounded[tensor] = rounded

    def weight(self, name: str, axis: int) -> None:
        values = numpy_helper.to_array(self.weights[name])
        others = tuple(place for place in range(values.ndim) if place != axis)
        scales = np.abs(values).max(others) / np.float32(127)
        scales[scales == 0] = 1  # a channel without weights
        inputs = [
            self.constant(f"{name}_byte", np.rint(values / np.expand_dims(scales, others)).astype(np.int8)),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero", np.zeros(scales.shape, np.int8)),
        ]
        self.rounded[name] = f"{name}_rounded"
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [self.rounded[name]], f"{name}/dequantise", axis=axis))

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def finish(self) -> None:
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        set_constants(self.graph, [*self.weights.values(), *self.constants.values()])


def _plan(model: onnx.ModelProto, float_layers: Collection[str], *, unsigned: bool) -> _Plan:
    layers = _layers(model)
    unknown = sorted(set(float_layers) - layers.keys())
    if unknown:
        raise ExportError(f"the graph has no layer {unknown[0]} that could be left in float")
    layers = {name: node for name, node in layers.items() if name not in float_layers}
    given = {output for node in layers.values() for output in node.output}
    points = {node.input[0] for node in layers.values()}
    if unsigned:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        points |= {_behind(node.output[0], readers) for node in layers.values() if node.op_type == "Conv"}
        sums = [node for node in model.graph.node if node.op_type == "Add" and points.issuperset(node.input)]
        points |= {_behind(node.output[0], readers) for node in sums}
    for node in model.graph.node:
        if node.op_type == "MaxPool" and node.output[0] in points:
            points.add(node.input[0])
        elif node.op_type == "Add" and not unsigned and given.issuperset(node.input):
            points.add(node.input[1])  # one of two layers joins the other's own sum, and is rounded on its way
    return _Plan(layers, points)


def _behind(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> str:
    """The tensor behind the activation function that alone reads another one, which a layer computes in one go."""
    nodes = readers.get(tensor, [])
    return nodes[0].output[0] if len(nodes) == 1 and nodes[0].op_type in _POSITIVE else tensor


def _layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    axes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    spared = {*convolutions[:1], *(node.name for node in model.graph.node if LOGITS in node.output)}
    return {
        node.name: node
        for node in model.graph.node
        if {"Conv": 4, "MatMul": 2}.get(node.op_type, -1) == axes.get(node.input[1] if len(node.input) > 1 else "")
        and node.name not in spared
    }


def _move_weights_to_rhs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn each weight @ maps into (maps^T @ weight^T)^T: runtimes take scales for the columns of the second factor alone."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in inferred if value.type.tensor_type.HasField("shape")
    }
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        left = weights.get(node.input[0]) if node.op_type == "MatMul" else None
        # averages and interpolation are multiplied by maps of three and more axes
        if left is None or len(left.dims) != 2 or ranks.get(node.input[1]) != 2:
            model.graph.node.append(node)
            continue
        weight, maps, output = f"{left.name}_right", f"{node.output[0]}_maps", f"{node.output[0]}_turned"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(left).T), weight))
        model.graph.node.extend(
            [
                helper.make_node("Transpose", [node.input[1]], [maps], f"{node.name}_maps", perm=[1, 0]),
                helper.make_node("MatMul", [maps, weight], [output], node.name),
                helper.make_node("Transpose", [output], list(node.output), f"{node.name}_turned", perm=[1, 0]),
            ]
        )
    set_constants(model.graph, model.graph.initializer)
    return model
