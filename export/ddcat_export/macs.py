"""Count the multiply-adds of a graph."""

import math

import onnx
from onnx import helper

from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import ANY_SIZE, PRODUCTS

__all__ = ["multiply_adds"]

_WEIGHT = 1024  # elements; a tensor that has more is no shape, and none of numbers with a point in rows and columns is one


def multiply_adds(content: bytes, size: tuple[int, int]) -> int:
    """
    Count the multiply-adds of all convolutions and matrix products of a graph for one image, from their shapes.

    Parameters
    ----------
    content : bytes
        An ONNX file, of any precision.
    size : (height, width)
        Size of the image, in pixels.

    Raises
    ------
    ExportError
        Where ONNX's shape inference does not find the shape of a product.
    """
    graph = _computed(onnx.load_model_from_string(content), size)
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        first, second, output = (shapes.get(name, (0,)) for name in (node.input[0], node.input[1], node.output[0]))
        if not all(math.prod(shape) for shape in (first, second, output)):
            raise ExportError(f"the shapes of {node.name} do not follow from the size {size[0]}x{size[1]} of the image")
        # of each value of the output, or for a transposed convolution of the input: one for each value that it is a sum of
        values, terms = {
            "Conv": (output, second[1:]),
            "ConvTranspose": (first, second[1:]),
            "Gemm": (output, first[:1] if any(a.name == "transA" and a.i for a in node.attribute) else first[1:]),
            "MatMul": (output, first[-1:]),
        }[node.op_type]
        total += math.prod(values) * math.prod(terms)
    return total


def _computed(model: onnx.ModelProto, size: tuple[int, int]) -> onnx.GraphProto:
    """Infer all shapes: what a graph makes of sizes is computed, so that it is constant, and its weights become inputs."""
    from onnxscript import optimizer  # noqa: PLC0415 -- slow to import

    for axis, value in enumerate((1, *size)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value
    weights = [tensor for tensor in model.graph.initializer if _is_weight(tensor)]
    rest = [tensor for tensor in model.graph.initializer if not _is_weight(tensor)]
    model.graph.input.extend(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in weights)
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    for output in model.graph.output:  # its axes have the names of those that are free
        output.type.tensor_type.ClearField("shape")
    computed = optimizer.optimize(model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    return onnx.shape_inference.infer_shapes(computed, data_prop=True).graph


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) > _WEIGHT or (len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT)
