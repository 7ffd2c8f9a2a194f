"""A differentiable twin of an engine: its ONNX file, run by torch, so that white-box attacks see what the engine computes."""

from typing import NamedTuple

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from ddcat.bundle import Bundle
from ddcat.error_text import first_line
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.twin_nodes import NODES, as_tensor
from ddcat_bench.gate.twin_operator import Attributes, NotSupportedError, Operator

__all__ = ["Executor", "Twin", "twin_of"]

# Between these two opsets the operators of the table changed only by attributes, inputs and types, all of which are checked.
_FIRST, _LAST = 13, 28


class _Step(NamedTuple):
    name: str  # operator and node, for messages
    operator: Operator
    inputs: tuple[str, ...]
    attributes: Attributes
    outputs: tuple[str, ...]
    unread: tuple[str, ...] = ()  # values that no later step reads


class Executor:
    """
    A graph of ONNX, run by torch step by step; gradients pass.

    Constants are computed once, steps that no wanted output needs are left out, and a value is dropped when nothing reads it
    any more.

    Parameters
    ----------
    model : onnx.ModelProto
    outputs : sequence of str, optional
        Names of the values to compute; the graph's own outputs where none are given.

    Attributes
    ----------
    constants : dict of str to Tensor
        Those that the steps read. A caller may move them to another device or type.

    Raises
    ------
    BenchError
        Naming what it does not support: an operator, one of its forms or versions, a type of values.
    """

    def __init__(self, model: onnx.ModelProto, outputs: tuple[str, ...] = ()) -> None:
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        for value in model.graph.input:
            if not value.type.HasField("tensor_type"):
                raise _refusal(f"the input {value.name}, which is no tensor")
        self.outputs = outputs or tuple(value.name for value in model.graph.output)
        values: dict[str, Tensor] = {}
        for tensor in model.graph.initializer:
            try:
                values[tensor.name] = as_tensor(tensor)
            except NotSupportedError as cause:
                raise _refusal(f"{cause} in {tensor.name}") from cause
        if model.graph.sparse_initializer:
            raise _refusal("sparse constants")
        read = {name for node in model.graph.node for name in node.input} | set(self.outputs)
        steps = []
        for node in model.graph.node:
            step = _step(node, opset, read)
            if all(name in values for name in step.inputs if name):
                values.update(_results(step, values))
            else:
                steps.append(step)
        self._steps = _without_waste(steps, self.outputs)
        read = {name for step in self._steps for name in step.inputs} | set(self.outputs)
        self.constants = {name: value for name, value in values.items() if name in read}

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs, by name, from the graph's inputs."""
        values = {**self.constants, **inputs}
        for step in self._steps:
            values.update(_results(step, values))
            for name in step.unread:
                del values[name]
        return {name: values[name] for name in self.outputs}


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
    BenchError
        Naming what it does not support.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        model = onnx.load_model_from_string(content)
        self._scores = _scores(model.graph)
        self._executor = Executor(model, (self._scores,))
        self._buffer_names = {name: f"constant_{place}" for place, name in enumerate(self._executor.constants)}
        for name, buffer in self._buffer_names.items():
            self.register_buffer(buffer, self._executor.constants[name])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """
        Compute the logits that the engine chooses its labels by.

        Parameters
        ----------
        images : (N, 3, H, W) float32
            RGB in [0, 1]. They are not rounded to bytes.

        Returns
        -------
        (N, K, H, W) float32

        Raises
        ------
        BenchError
            Naming the node whose form or values it does not support: some are known only when an image comes.
        """
        self._executor.constants = {name: self.get_buffer(buffer) for name, buffer in self._buffer_names.items()}
        pixels = (images * 255).permute(0, 2, 3, 1)  # the graph divides again
        scores = self._executor({"image": pixels})[self._scores]
        return scores.reshape(len(images), -1, images.shape[2], images.shape[3])


def twin_of(bundle: Bundle) -> Twin:
    """
    Make the twin of a bundle's engine, and try it on the smallest image: some forms are known only then.

    Raises
    ------
    BenchError
        Naming what it does not support.
    """
    engine, shapes = bundle.manifest.engine, bundle.manifest.shapes
    # the ONNX file that the engine computes: the one that it loads, or that its plan was built from
    twin = Twin(bundle.files[engine.file if engine.file.endswith(".onnx") else engine.graph])
    height, width = shapes.sizes[0] if shapes.sizes is not None else (shapes.height.minimum, shapes.width.minimum)
    with torch.no_grad():
        twin(torch.zeros(shapes.batch.minimum, 3, height, width))
    return twin


def _refusal(what: str) -> BenchError:
    return BenchError(f"the gate cannot attack this graph: its differentiable executor does not support {what}")


def _step(node: onnx.NodeProto, opset: int, read: set[str]) -> _Step:
    name = f"{node.op_type} at {node.name or node.output[0]}"
    if node.domain not in ("", "ai.onnx"):
        raise _refusal(f"{node.domain}.{name}")
    if node.op_type not in NODES:
        raise _refusal(name)
    known, schema = NODES[node.op_type], _schema(node, opset)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for key, value in attributes.items():
        if key not in known.attributes and not (key in schema.attributes and value == _default(schema.attributes[key])):
            raise _refusal(f"{name} with the attribute {key}")
    spare = [output for output in node.output[1:] if output in read]
    if spare and node.op_type != "Split":
        raise _refusal(f"the further outputs of {name}")
    return _Step(name, known, tuple(node.input), attributes, tuple(node.output))


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema:
    """Return what the graph's opset says of an operator; other opsets than ours may say the same."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
        nearest = onnx.defs.get_schema(node.op_type, min(max(opset, _FIRST), _LAST))
    except onnx.defs.SchemaError as cause:
        raise _refusal(f"{node.op_type} of opset {opset}") from cause
    if schema.since_version != nearest.since_version:
        raise _refusal(f"{node.op_type} of opset {opset}; it knows what opsets {_FIRST} to {_LAST} say of it")
    return schema


def _default(attribute: onnx.defs.OpSchema.Attribute) -> object:
    return helper.get_attribute_value(attribute.default_value) if attribute.default_value.type else None


def _results(step: _Step, values: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = [values[name] if name else None for name in step.inputs]
    try:
        results = step.operator.run(inputs, step.attributes)
    except NotSupportedError as cause:
        raise _refusal(f"{step.name} with {cause}") from cause
    except Exception as cause:  # torch lacks a form that ONNX has
        raise _refusal(f"{step.name}: {first_line(cause)}") from cause
    if isinstance(results, Tensor):
        return {step.outputs[0]: results}
    return {name: result for name, result in zip(step.outputs, results, strict=True) if name}


def _scores(graph: onnx.GraphProto) -> str:
    """Name the value that the labels are the argmax of, over the classes of every pixel."""
    makers = {node.output[0]: node for node in graph.node}
    name = "labels"
    while name in makers:
        node = makers[name]
        name = node.input[0]
        if node.op_type == "ArgMax":
            return str(name)
    raise BenchError("the graph chooses no labels by an ArgMax: expected a graph that ddcat export wrote")


def _without_waste(steps: list[_Step], outputs: tuple[str, ...]) -> tuple[_Step, ...]:
    """Keep the steps that the outputs need, and let each drop what is not read any more."""
    needed, kept = set(outputs), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            last = {name for name in step.inputs if name and name not in needed}
            needed |= last
            kept.append(step._replace(unread=tuple(last)))
    made = {name for step in kept for name in step.outputs}
    return tuple(step._replace(unread=tuple(name for name in step.unread if name in made)) for step in reversed(kept))
