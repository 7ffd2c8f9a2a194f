"""A graph of ONNX, run by torch: what a runtime computes, with gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import onnx
import torch
from onnx import helper, inliner
from torch import Tensor, nn

from ddcat.error_text import first_line
from ddcat_export.errors import ExportError
from ddcat_export.twin.base import Attributes, Inputs, NotSupportedError, Operator, as_tensor, operator
from ddcat_export.twin.operators import OPERATORS

__all__ = ["Executor"]

# Between these two opsets the operators of the table changed by attributes, inputs and types, all of which are checked, and by
# what their entries of the table say.
_FIRST, _LAST = 11, 28


class _Step(NamedTuple):
    name: str  # operator and node, for messages
    operator: Operator
    inputs: tuple[str, ...]
    attributes: Attributes
    outputs: tuple[str, ...]
    unread: tuple[str, ...] = ()  # values that no later step reads


class Executor(nn.Module):
    """
    A graph of ONNX, run by torch step by step; gradients pass.

    Constants are computed once, steps that no wanted output needs are left out, and a value is dropped when nothing reads it
    any more. Of an If the branch that its condition chooses is run.

    Parameters
    ----------
    model : onnx.ModelProto
    outputs : sequence of str, optional
        Names of the values to compute; the graph's own outputs where none are given.

    Raises
    ------
    ExportError
        Naming what it does not support: an operator, one of its forms or versions, a type of values.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str] = ()) -> None:
        super().__init__()
        model = inliner.inline_local_functions(model) if model.functions else model
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        for value in model.graph.input:
            if not value.type.HasField("tensor_type"):
                raise _refusal(f"the input {value.name}, which is not a tensor")
        if model.graph.sparse_initializer:
            raise _refusal("sparse constants")
        self.outputs = tuple(outputs) or tuple(value.name for value in model.graph.output)
        self.branches = nn.ModuleList()  # of every If, where their constants move with this module
        values: dict[str, Tensor] = {}
        for tensor in model.graph.initializer:
            try:
                values[tensor.name] = as_tensor(tensor)
            except NotSupportedError as cause:
                raise _refusal(f"{cause} in {tensor.name}") from cause
        read = {name for node in model.graph.node for name in _read_by(node)} | set(self.outputs)
        steps = []
        for node in model.graph.node:
            step = self._choice(node, opset) if node.op_type == "If" else _step(node, opset, read)
            if all(name in values for name in step.inputs if name):
                values.update(_results(step, values))
            else:
                steps.append(step)
        self._steps = _without_waste(steps, self.outputs)
        read = {name for step in self._steps for name in step.inputs} | set(self.outputs)
        self._constants = {name: f"constant_{place}" for place, name in enumerate(values) if name in read}
        for name, buffer in self._constants.items():
            self.register_buffer(buffer, values[name])

    @property
    def constants(self) -> frozenset[str]:
        """Names of the constants that the steps read; `forward` takes other values for them, as it takes inputs."""
        return frozenset(self._constants)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs, by name, from the graph's inputs."""
        values = {name: self.get_buffer(buffer) for name, buffer in self._constants.items()} | inputs
        for step in self._steps:
            values.update(_results(step, values))
            for name in step.unread:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def _choice(self, node: onnx.NodeProto, opset: int) -> _Step:
        """Make the step of an If: its branches read the values around them."""
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        ways = [
            Executor(helper.make_model(graphs[name], opset_imports=[helper.make_opsetid("", opset)]))
            for name in ("then_branch", "else_branch")
        ]
        self.branches.extend(ways)
        outer = sorted(_read_by(node) - set(node.input))

        def run(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
            way = ways[0] if bool(inputs[0]) else ways[1]
            around = {name: value for name, value in zip(outer, inputs[1:], strict=True) if value is not None}
            return tuple(way(around).values())

        name = f"If at {node.name or node.output[0]}"
        return _Step(name, operator(run, several=True), (node.input[0], *outer), {}, tuple(node.output))


def _refusal(what: str) -> ExportError:
    return ExportError(f"this graph cannot be attacked: the differentiable executor does not support {what}")


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Name the values that a node reads, and those around them that its branches do."""
    read = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            made = {name for inner in attribute.g.node for name in inner.output}
            made |= {tensor.name for tensor in attribute.g.initializer}
            wanted = {name for inner in attribute.g.node for name in _read_by(inner)}
            read |= (wanted | {value.name for value in attribute.g.output}) - made
    return read


def _step(node: onnx.NodeProto, opset: int, read: set[str]) -> _Step:
    name = f"{node.op_type} at {node.name or node.output[0]}"
    if node.domain not in ("", "ai.onnx"):
        raise _refusal(f"{node.domain}.{name}")
    if node.op_type not in OPERATORS:
        raise _refusal(name)
    known, schema = OPERATORS[node.op_type], _schema(node, opset)
    if known.before is not None and opset < known.before[0]:
        known = known.before[1]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for key, value in attributes.items():
        if key not in known.attributes and not (key in schema.attributes and value == _default(schema.attributes[key])):
            raise _refusal(f"{name} with the attribute {key}")
    if not known.several and read.intersection(node.output[1:]):
        raise _refusal(f"the optional outputs of {name}")
    if "num_outputs" in known.attributes:  # until opset 18 nothing else says it
        attributes.setdefault("num_outputs", len(node.output))
    return _Step(name, known, tuple(node.input), attributes, tuple(node.output))


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema:
    """Return what the graph's opset says of an operator; other opsets than ours may say the same."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
        nearest = onnx.defs.get_schema(node.op_type, min(max(opset, _FIRST), _LAST))
    except onnx.defs.SchemaError as cause:
        raise _refusal(f"{node.op_type} of opset {opset}") from cause
    if schema.since_version != nearest.since_version:
        raise _refusal(f"{node.op_type} of opset {opset}; it supports the operator of opsets {_FIRST} to {_LAST}")
    return schema


def _default(attribute: onnx.defs.OpSchema.Attribute) -> object:
    return helper.get_attribute_value(attribute.default_value) if attribute.default_value.type else None


def _results(step: _Step, values: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = [values[name] if name else None for name in step.inputs]
    places = {value.device for value in inputs if value is not None}
    if len(places) > 1:  # shapes, and what is made of them, are on the CPU until they meet maps that are elsewhere
        (place,) = places - {torch.device("cpu")}
        inputs = [None if value is None else value.to(place) for value in inputs]
    try:
        results = step.operator.run(inputs, step.attributes)
    except ExportError:  # of a branch
        raise
    except NotSupportedError as cause:
        raise _refusal(f"{step.name} with {cause}") from cause
    except Exception as cause:  # torch lacks a form that ONNX has
        raise _refusal(f"{step.name}: {first_line(cause)}") from cause
    if isinstance(results, Tensor):
        return {step.outputs[0]: results}
    return {name: result for name, result in zip(step.outputs, results, strict=True) if name}


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
