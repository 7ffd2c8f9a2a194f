"""The proof that a graph is the main branch alone, of any size: by its values, and by its multiply-adds."""

import copy
from itertools import zip_longest

import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddcat.manifest import MainBranchProof, Sizes
from ddcat_export.cost import multiply_adds
from ddcat_export.errors import ExportError
from ddcat_export.graph import TRACED, MainBranch, build_graph, quiet, traced_input
from ddcat_train.networks import Segmenter

__all__ = ["prove_main_branch"]

_OTHER = (3, 86, 55)  # what is traced the second time, where it is free: no side in common with the first


def prove_main_branch(
    segmenter: Segmenter, content: bytes, *, sizes: Sizes | None, logits: bool, confidence: bool
) -> MainBranchProof:
    """
    Prove that a graph holds nothing of the spare heads.

    By values: the graph is exported again from a copy in which every parameter and buffer of the auxiliary, mask and
    deep-supervision heads is NaN, and from an example of another size where sizes are free. Whatever of them were in the graph
    would change its bytes.

    By multiply-adds: those of the graph, counted from its shapes, are those that PyTorch counts as it runs a network without
    these heads.

    Parameters
    ----------
    segmenter : Segmenter
    content : bytes
        What `build_graph` gave for it, with the same options.
    sizes, logits, confidence
        Those options.

    Raises
    ------
    ExportError
        Where the bytes or the numbers differ.
    """
    spare = [name for name in segmenter.heads if name != "main"]
    spoilt = copy.deepcopy(segmenter)
    elements = sum(_spoil(spoilt.heads[name]) for name in spare)
    again = build_graph(spoilt, sizes=sizes, logits=logits, confidence=confidence, traced=_OTHER)
    if again != content:
        node = _first_difference(content, again)
        if build_graph(segmenter, sizes=sizes, logits=logits, confidence=confidence, traced=_OTHER) != content:
            raise ExportError(
                f"a constant of the graph comes of the images that were traced, not of those that it is given: {node} is "
                f"another one for {_shape(_OTHER)} than for {_shape(TRACED)}"
            )
        raise ExportError(
            f"the graph depends on a head that inference does not need ({', '.join(spare)}): {node} changes when their weights "
            "are NaN, so it is not the main branch alone"
        )
    images, _ = traced_input(sizes)
    size = (images.shape[1], images.shape[2])
    found, needed = multiply_adds(content, size), _needed(segmenter, sizes)
    if found != needed:
        raise ExportError(
            f"the graph makes {found} multiply-adds for an image of {size[0]}x{size[1]}, and the main branch needs {needed}: "
            "it is not the main branch alone"
        )
    return MainBranchProof(spare_parameters=elements, bytes_unchanged=True, multiply_adds=found, size=size)


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


def _needed(segmenter: Segmenter, sizes: Sizes | None) -> int:
    """Count the multiply-adds for one image of a network that has the main head only."""
    lone = copy.deepcopy(segmenter)
    lone.heads = nn.ModuleDict({"main": lone.heads["main"]})
    images, free = traced_input(sizes)
    with quiet(), torch.no_grad():
        # as the exporter sees it: where all sizes are known, some products with constants are done once, or not at all
        program = torch.export.export(
            MainBranch(lone).eval(), (images,), dynamic_shapes={"image": free}, prefer_deferred_runtime_asserts_over_guards=True
        )
        module = program.module()
        with FlopCounterMode(display=False) as counter:
            module(images)
    return int(counter.get_total_flops()) // (2 * images.shape[0])  # it counts a multiply-add as two
