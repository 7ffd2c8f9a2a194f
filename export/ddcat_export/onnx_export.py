"""Export the main branch of a segmenter as an ONNX graph: the same network and options give the same bytes."""

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ddcat.error_text import first_line
from ddcat.manifest import Sizes
from ddcat_export.errors import ExportError
from ddcat_export.export_forms import ExportForms
from ddcat_export.fuse_batch_norm import fold_batch_norms
from ddcat_export.graph_checks import ANY_SIZE, LOGITS, OPSET, check_form, check_graph, set_constants
from ddcat_train.networks import Segmenter

__all__ = [
    "MINIMUM_SIZE",
    "MainBranchModule",
    "as_graph",
    "build_graph",
    "quiet",
    "spell_out_norms",
    "strip",
    "trace",
    "traced_input",
    "with_logits",
]

MINIMUM_SIZE = 33  # pixels a side, of any network

_WEIGHTS = "segmenter."


class MainBranchModule(nn.Module):
    """
    The function that an engine computes: uint8 images in, labels out, the main branch of a segmenter between.

    Parameters
    ----------
    segmenter : Segmenter
    confidence : bool
        Compute the probability of each label.
    """

    def __init__(self, segmenter: Segmenter, *, confidence: bool = False) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.confidence = confidence

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Segment images.

        Parameters
        ----------
        image : (N, H, W, C) uint8
            RGB, or the bands of the configuration.

        Returns
        -------
        labels : (N, H, W) uint8
        logits : (N, K, h, w) float32
            At the backbone's output stride.
        confidence : (N, H, W) float32, where it is asked for
            Probability of the label, in [0, 1]: the softmax of all logits, at the resolution of the image.
        """
        # TensorRT casts uint8 from and to float only, and computes nothing else on it: cast first, and back by way of float.
        planes = (image.to(torch.float32) / 255).permute(0, 3, 1, 2)  # (N, C, H, W)
        features = self.segmenter.features(planes)
        logits = self.segmenter.low_resolution_logits("main", features)
        full = self.segmenter.enlarge(logits, features.size)  # (N, K, H, W)
        # Over whole planes, not over the channels of each pixel: OpenVINO keeps maps channels last, and is slow at that.
        labels = (
            full.flatten(2).argmax(1).reshape(image.shape[0], *features.size).to(torch.float32).to(torch.uint8)
        )  # (N, H, W)
        if not self.confidence:
            return labels, logits
        return labels, logits, (full - full.amax(1, keepdim=True)).exp().sum(1).reciprocal()


def build_graph(segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool) -> bytes:
    """
    Export the main branch, in fp32.

    Parameters
    ----------
    segmenter : Segmenter
        On the CPU, in eval() mode.
    sizes : tuple of (height, width), or None
        Sizes of the images, in pixels. One: the graph takes it alone. Several, or None: height and width are free in the graph,
        from 33 x 33 on. The batch is always free.
    logits, confidence : bool
        Add the logits at low resolution, and the probability of each label, to the outputs.

    Returns
    -------
    bytes
        An ONNX file without traces, paths or versions, so that the same network and options give the same bytes. Its nodes are
        named `LAYER/OPERATION_NUMBER` where they belong to a layer.

    Raises
    ------
    ExportError
        Where the exporter refuses, or the graph has another opset, domain, type, input or output than requested.
    """
    program = trace(segmenter, sizes=sizes, confidence=confidence)
    return as_graph(program, segmenter, sizes=sizes, logits=logits, confidence=confidence)


def as_graph(
    program: torch.onnx.ONNXProgram, segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool
) -> bytes:
    """Make the ONNX file from the program of `trace` with the same options, and check its form: see `build_graph`."""
    model: onnx.ModelProto = program.model_proto
    _rename(model)
    strip(model)
    _name_axes(model)
    spell_out_norms(model)
    if not logits:
        del model.graph.output[1]  # the tensor stays, under its name: see `with_logits`
    size = sizes[0] if sizes is not None and len(sizes) == 1 else None
    check_form(model, segmenter.classes, size, channels=segmenter.bands, logits=logits, confidence=confidence)
    check_graph(model, "fp32")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def with_logits(content: bytes) -> bytes:
    """Add the logits as second output, without changing what the graph computes."""
    model = onnx.load_model_from_string(content)
    outputs = list(model.graph.output)
    if LOGITS not in [output.name for output in outputs]:
        outputs.insert(1, helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None))
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def trace(
    segmenter: Segmenter, *, sizes: Sizes | None, confidence: bool, traced: tuple[int, int, int] | None = None
) -> torch.onnx.ONNXProgram:
    """
    Export the main branch with folded batch norms by torch: see `build_graph`. Nothing is checked yet.

    Parameters
    ----------
    segmenter, sizes, confidence
        As for `build_graph`.
    traced : (batch, height, width), optional
        Shape of the traced example: two images of the first of `Segmenter.traced` by default. Where sizes are free, every
        shape gives the same graph.
    """
    from onnxscript import optimizer  # noqa: PLC0415 -- slow to import

    if segmenter.largest is not None and (sizes is None or len(sizes) != 1):
        raise ExportError(
            f"this network pads images to {segmenter.largest}x{segmenter.largest}, so it exports for one image size only: use "
            "--size HxW"
        )
    images, free = traced_input(sizes, traced or (2, *segmenter.traced[0]), segmenter.bands)
    try:
        with quiet(), torch.no_grad(), ExportForms():
            program = torch.onnx.export(
                MainBranchModule(fold_batch_norms(segmenter), confidence=confidence).eval(),
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["labels", LOGITS, "confidence"][: 2 + confidence],
                dynamic_shapes={"image": free},
                external_data=False,
                verbose=False,
            )
            if program is not None:  # parts of weights become weights of their own, which runtimes and int8 know as such
                optimizer.optimize(program.model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    except Exception as cause:  # the exporter's exceptions share no base, and hold pages; what went wrong is in their cause
        line = first_line(cause.__cause__ or cause)
        raise ExportError(f"torch {torch.__version__} cannot export this network: {line}") from cause
    if program is None:
        raise ExportError(f"torch {torch.__version__} exported nothing: use torch 2.6 or later")
    return program


def traced_input(sizes: Sizes | None, traced: tuple[int, int, int], channels: int) -> tuple[Tensor, dict[int, Any]]:
    """
    Return the example that the exporter traces.

    Returns
    -------
    images : (N, H, W, C) uint8
        Zeros, of the one size or of `traced`.
    free : dict of int to torch.export.Dim
        The axes that may have other sizes.
    """
    batch, height, width = traced
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if sizes is not None and len(sizes) == 1:
        height, width = sizes[0]
    else:
        free |= {axis: torch.export.Dim(name, min=MINIMUM_SIZE) for axis, name in ((1, "height"), (2, "width"))}
    return torch.zeros(batch, height, width, channels, dtype=torch.uint8), free


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter."""
    # What it says concerns its own developers (deprecations, torchvision not installed). What it merely warns of, a wrong
    # opset or wrong values, is refused by the checks of form and of parity.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _rename(model: onnx.ModelProto) -> None:
    # The exporter numbers nodes and tensors, by what it traced, too. Its metadata, which are stripped, hold the path of modules
    # that a node belongs to: it becomes LAYER/OPERATION_NUMBER, and what it gives has its name.
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {LOGITS: LOGITS, "": ""}
    numbers: Counter[str] = Counter()

    def numbered(stem: str) -> str:
        numbers[stem] += 1
        return f"{stem}_{numbers[stem]}"

    for tensor in graph.initializer:
        if not tensor.name.startswith(_WEIGHTS):  # of the network, by its path; or else what was computed of sizes and weights
            names[tensor.name] = tensor.name = numbered("constant")
    for node in graph.node:
        scopes = next((m.value for m in node.metadata_props if m.key == "pkg.torch.onnx.name_scopes"), None)
        modules = [] if scopes is None else ast.literal_eval(scopes)[:-1]
        layer = modules[-1] if modules and modules[-1].startswith(_WEIGHTS) else ""
        node.name = numbered("/".join(filter(None, (layer, node.op_type.lower()))))
        node.input[:] = [names.get(name, name) for name in node.input]
        for place, output in enumerate(node.output):
            names.setdefault(output, f"{node.name}:{place}" if place else node.name)
        node.output[:] = [names[output] for output in node.output]


def strip(message: Any) -> None:
    """Take out what tells of the machine and the program that wrote a graph."""
    # doc strings and metadata hold stack traces with paths; the shapes of inner tensors hold names of traced symbols
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props", "producer_name", "producer_version", "value_info"):
            message.ClearField(field.name)
        elif hasattr(value, "ListFields"):
            strip(value)
        elif field.message_type is not None:
            for part in value:
                strip(part)


def _name_axes(model: onnx.ModelProto) -> None:
    # the exporter calls them by their formula, such as ((height - 1)//8) + 1
    for axis, name in ((2, "logits_height"), (3, "logits_width")):
        dimension = model.graph.output[1].type.tensor_type.shape.dim[axis]
        if dimension.dim_param:
            dimension.dim_param = name


def spell_out_norms(model: onnx.ModelProto) -> None:
    """Write batch norms as products and sums."""
    # those that no convolution precedes, in a backbone that is not ours: a factor and a shift of each channel
    nodes, tensors = list(model.graph.node), {tensor.name: tensor for tensor in model.graph.initializer}
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "BatchNormalization":
            model.graph.node.append(node)
            continue
        weight, bias, mean, variance = (numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:])
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        factor = weight / np.sqrt(variance + epsilon)
        output, scaled = node.output[0], f"{node.output[0]}_scaled"
        for name, values in ((f"{output}_factor", factor), (f"{output}_shift", bias - mean * factor)):
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32)[:, None, None], name))
        model.graph.node.append(helper.make_node("Mul", [node.input[0], f"{output}_factor"], [scaled], f"{node.name}_factor"))
        model.graph.node.append(helper.make_node("Add", [scaled, f"{output}_shift"], [output], node.name))
    set_constants(model.graph, model.graph.initializer)
