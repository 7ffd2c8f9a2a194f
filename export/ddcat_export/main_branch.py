"""Prove that a graph is the main branch alone, by its bytes and by its multiply-adds."""

import copy
import math
from collections.abc import Sequence
from itertools import zip_longest

import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddcat.manifest import MainBranchProof, Sizes
from ddcat_export.errors import ExportError
from ddcat_export.macs import multiply_adds
from ddcat_export.onnx_export import as_graph, quiet, trace, traced_input
from ddcat_train.networks import Segmenter

__all__ = ["prove_main_branch"]

_ATEN = torch.ops.aten
# What PyTorch's counter leaves out and the exporter writes as MatMul.
_FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: _attention(query, key, value),
    _ATEN.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
    _ATEN.addmv: lambda bias, matrix, vector, **_: 2 * math.prod(matrix),
    _ATEN.dot: lambda first, second, **_: 2 * math.prod(first),
}


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Count the operations of scores, (N, H, S, D) by (N, H, T, D), and of their products with values, (N, H, T, V)."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def prove_main_branch(
    segmenter: Segmenter, content: bytes, *, sizes: Sizes | None, logits: bool, confidence: bool
) -> MainBranchProof:
    """
    Prove that a graph holds nothing of the spare heads.

    By bytes: the graph is exported again from a copy without auxiliary, mask and deep-supervision heads, whose parameters and
    buffers were first set to NaN (for modules that might share them), and from an example of another size where sizes are free.
    Anything of them in the graph would change its bytes.

    By multiply-adds: the number of the graph, from its shapes, is the number that PyTorch counts as it runs that copy.

    Parameters
    ----------
    segmenter : Segmenter
    content : bytes
        The graph of `build_graph` for it, with the same options.
    sizes, logits, confidence
        The options.

    Raises
    ------
    ExportError
        Where the bytes or the numbers differ.
    """
    first, second = (2, *segmenter.traced[0]), (3, *segmenter.traced[1])
    spare = [name for name in segmenter.heads if name != "main"]
    lone = copy.deepcopy(segmenter)
    elements = sum(_spoil(lone.heads[name]) for name in spare)
    lone.heads = nn.ModuleDict({"main": lone.heads["main"]})
    needless = f"the graph depends on a head that inference does not need ({', '.join(spare)})"
    try:
        program, again = _export(lone, sizes=sizes, logits=logits, confidence=confidence)
    except ExportError as cause:
        try:
            _export(segmenter, sizes=sizes, logits=logits, confidence=confidence)
        except ExportError:  # not for want of the heads
            raise ExportError(
                f"the network exports from images of {_shape(first)}, but not from {_shape(second)}: {cause}"
            ) from cause
        raise ExportError(f"{needless}, so it is not the main branch alone: without them {cause}") from cause
    if again != content:
        node = _first_difference(content, again)
        if _export(segmenter, sizes=sizes, logits=logits, confidence=confidence)[1] != content:
            raise ExportError(
                f"a constant of the graph depends on the images that were traced: {node} differs between images of "
                f"{_shape(second)} and {_shape(first)}"
            )
        raise ExportError(f"{needless}: {node} changes when their weights are NaN, so it is not the main branch alone")
    images, _ = traced_input(sizes, first, segmenter.bands)
    size = (images.shape[1], images.shape[2])
    counted, needed = multiply_adds(content, size), _counted(program, images)
    if counted != needed:
        raise ExportError(
            f"the graph has {counted} multiply-adds for an image of {size[0]}x{size[1]}, but the main branch needs {needed}: "
            "it is not the main branch alone"
        )
    return MainBranchProof(spare_parameters=elements, bytes_unchanged=True, multiply_adds=counted, size=size)


def _export(
    segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool
) -> tuple[torch.onnx.ONNXProgram, bytes]:
    program = trace(segmenter, sizes=sizes, confidence=confidence, traced=(3, *segmenter.traced[1]))
    return program, as_graph(program, segmenter, sizes=sizes, logits=logits, confidence=confidence)


def _spoil(head: nn.Module) -> int:
    elements = 0
    for values in (*head.parameters(), *head.buffers()):
        if values.is_floating_point():
            elements += values.numel()
        values.data.fill_(torch.nan if values.is_floating_point() else -1)  # counters know no NaN
    return elements


def _first_difference(content: bytes, again: bytes) -> str:
    first, second = (onnx.load_model_from_string(graph).graph for graph in (content, again))
    for kind in ("initializer", "node"):
        for one, other in zip_longest(getattr(first, kind), getattr(second, kind)):
            if one != other:
                return str((one if one is not None else other).name)
    return "an output"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _counted(program: torch.onnx.ONNXProgram, images: Tensor) -> int:
    """Count the multiply-adds for one image, as PyTorch runs what was exported."""
    # what was exported, not the network: where all sizes are known, some products with constants are done once, or not at all
    assert program.exported_program is not None  # for the type checker: it is what the program was made of
    module = program.exported_program.module()
    with quiet(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        module(images)
    return int(counter.get_total_flops()) // (2 * images.shape[0])  # it counts a multiply-add as two
