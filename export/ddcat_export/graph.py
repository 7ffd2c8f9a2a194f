"""The main branch of a segmenter as an ONNX graph: the same network and options give the same bytes."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ddcat.manifest import MainBranchProof
from ddcat_export.errors import ExportError
from ddcat_train.networks import Segmenter
from ddcat_train.networks.layers import upsample

__all__ = ["MINIMUM_SIZE", "OPSET", "MainBranch", "build_graph", "prove_main_branch", "with_logits"]

OPSET = 20
MINIMUM_SIZE = 33  # pixels a side, of any network
_ANY_SIZE = 2**40
_TRACED = (2, 71, 103)  # a batch and a size that no network or attack prefers; the sweep runs on others


class MainBranch(nn.Module):
    """
    What an engine computes: uint8 images in, labels out, the main branch of a segmenter between.

    Parameters
    ----------
    segmenter : Segmenter
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """
        Segment images.

        Parameters
        ----------
        image : (N, H, W, 3) uint8
            RGB.

        Returns
        -------
        labels : (N, H, W) uint8
        logits : (N, K, h, w) float32
            At the backbone's output stride.
        """
        # TensorRT casts uint8 from and to float only, and computes nothing else on it: cast first, and back by way of float.
        planes = (image.to(torch.float32) / 255).permute(0, 3, 1, 2)  # (N, 3, H, W)
        features = self.segmenter.features(planes)
        logits = self.segmenter.low_resolution_logits("main", features)
        # Over whole planes, not over the channels of each pixel: OpenVINO keeps maps channels last, and is slow at that.
        labels = upsample(logits, features.size).flatten(2).argmax(1).reshape(-1, *features.size)  # (N, H, W)
        return labels.to(torch.float32).to(torch.uint8), logits


def build_graph(segmenter: Segmenter, *, size: tuple[int, int] | None, logits: bool) -> bytes:
    """
    Export the main branch.

    Parameters
    ----------
    segmenter : Segmenter
        On the CPU, in eval() mode.
    size : (height, width) or None
        Of the images, in pixels; None: free from 33 x 33 on. The batch is always free.
    logits : bool
        Give the logits at low resolution as a second output.

    Returns
    -------
    bytes
        An ONNX file without traces, paths or versions, so that the same network and options give the same bytes.

    Raises
    ------
    ExportError
        Where the exporter refuses, or left another opset, domain, input or output than was asked for.
    """
    model = _trace(segmenter, size)
    _strip(model)
    _name_axes(model)
    if not logits:
        del model.graph.output[1:]  # the tensor stays, under its name: see `with_logits`
    _check(model, segmenter.classes, size, logits=logits)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def prove_main_branch(segmenter: Segmenter, content: bytes, *, size: tuple[int, int] | None, logits: bool) -> MainBranchProof:
    """
    Prove by values that a graph holds nothing of the spare heads.

    The graph is exported again from a copy in which every parameter and buffer of the auxiliary, mask and deep-supervision
    heads is NaN: whatever of them were in the graph would change its bytes.

    Parameters
    ----------
    segmenter : Segmenter
    content : bytes
        What `build_graph` gave for it, with the same options.

    Raises
    ------
    ExportError
        Where the bytes differ.
    """
    spoilt = copy.deepcopy(segmenter)
    elements = 0
    for name, head in spoilt.heads.items():
        if name == "main":
            continue
        for values in (*head.parameters(), *head.buffers()):
            if values.is_floating_point():
                elements += values.numel()
            values.data.fill_(torch.nan if values.is_floating_point() else -1)  # counters know no NaN
    if elements and build_graph(spoilt, size=size, logits=logits) != content:
        raise ExportError(
            f"the graph depends on a head that inference does not need ({', '.join(h for h in spoilt.heads if h != 'main')}): "
            "its bytes change when their weights are NaN, so it is not the main branch alone"
        )
    return MainBranchProof(spare_parameters=elements, bytes_unchanged=True)


def with_logits(content: bytes) -> bytes:
    """Give a graph of `build_graph` its logits as an output, without touching what it computes."""
    model = onnx.load_model_from_string(content)
    if len(model.graph.output) == 1:
        model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def _trace(segmenter: Segmenter, size: tuple[int, int] | None) -> onnx.ModelProto:
    from onnxscript import optimizer  # noqa: PLC0415 -- slow to import

    batch, height, width = _TRACED if size is None else (_TRACED[0], *size)
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if size is None:
        free |= {axis: torch.export.Dim(name, min=MINIMUM_SIZE) for axis, name in ((1, "height"), (2, "width"))}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                MainBranch(segmenter).eval(),
                (torch.zeros(batch, height, width, 3, dtype=torch.uint8),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["labels", "logits"],
                dynamic_shapes={"image": free},
                external_data=False,
                verbose=False,
            )
            if program is not None:  # parts of weights become weights of their own, which runtimes and int8 know as such
                optimizer.optimize(program.model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    except Exception as cause:  # the exporter's exceptions share no base, and hold pages
        line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ExportError(f"torch {torch.__version__} cannot export this network: {line}") from cause
    if program is None:
        raise ExportError(f"torch {torch.__version__} exported nothing: torch 2.6 or later would be right")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # What it says concerns its own developers (deprecations, torchvision not installed). What it merely warns of, a wrong
    # opset or wrong values, is refused by `_check` and by the sweep.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(message: Any) -> None:
    # doc strings and metadata hold stack traces with paths; the shapes of inner tensors hold names of traced symbols
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props", "producer_name", "producer_version", "value_info"):
            message.ClearField(field.name)
        elif hasattr(value, "ListFields"):
            _strip(value)
        elif field.message_type is not None:
            for part in value:
                _strip(part)


def _name_axes(model: onnx.ModelProto) -> None:
    # the exporter calls them by their formula, such as ((height - 1)//8) + 1
    for axis, name in ((2, "logits_height"), (3, "logits_width")):
        dimension = model.graph.output[1].type.tensor_type.shape.dim[axis]
        if dimension.dim_param:
            dimension.dim_param = name


def _check(model: onnx.ModelProto, classes: int, size: tuple[int, int] | None, *, logits: bool) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET} or model.functions:
        others = [name for name in opsets if name]
        raise ExportError(
            f"torch {torch.__version__} wrote opset {opsets.get('')} and further domains {others} where opset {OPSET} of ONNX "
            "alone was asked for: another version of torch would be right"
        )
    height, width = size or ("height", "width")
    low: tuple[int | str, ...] = ("logits_height", "logits_width")
    if size is not None:
        low = tuple(d.dim_value for d in model.graph.output[-1].type.tensor_type.shape.dim[2:]) if logits else ()
    wanted: dict[str, tuple[int, tuple[int | str, ...]]] = {
        "image": (TensorProto.UINT8, ("batch", height, width, 3)),
        "labels": (TensorProto.UINT8, ("batch", height, width)),
    }
    if logits:
        wanted["logits"] = (TensorProto.FLOAT, ("batch", classes, *low))
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    fixed = [side for side in found.get("image", (0, ()))[1][1:3] if isinstance(side, int)]
    if size is None and fixed:
        raise ExportError(
            f"torch {torch.__version__} exports this network for one size of images only, its code depends on it: "
            "--size HxW would be right"
        )
    if found != wanted:
        raise ExportError(f"torch {torch.__version__} wrote inputs and outputs {found} where {wanted} were asked for")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as cause:  # its exceptions share no base
        raise ExportError(f"torch {torch.__version__} wrote a graph that is not valid ONNX: {cause}") from cause
