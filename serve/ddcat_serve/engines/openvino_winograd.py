"""
Wide 3x3 convolutions with a third fewer products, written into a model before OpenVINO compiles it.

OpenVINO computes them directly, at nearly all that a CPU gives; only fewer products make them quicker. Along the width two
outputs are a bilinear function of the four inputs that they see and of the three taps of a row (Winograd's F(2, 3)): four
products instead of six, exact up to rounding. Two dimensions would save more, but have larger intermediate maps and round more.

Of the maps, every second column begins a pair, ``d0 d1 d2 d3`` being what it sees. Four convolutions of three rows and one
column take ``d0 - d2``, ``d1 + d2``, ``d2 - d1`` and ``d1 - d3`` to ``m0 .. m3``; the pair is ``m0 + m1 + m2`` and
``m1 - m2 - m3``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op  # type: ignore[import-untyped]

__all__ = ["FEWEST_CHANNELS", "save_products"]

FEWEST_CHANNELS = 512  # below it, what is saved is no more than what slicing and adding cost

_TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # of a row, to what the four convolutions take


def save_products(model: Any) -> int:
    """
    Rewrite the 3x3 convolutions of a model that have many input channels, step 1, a border of 1 and a width that is known.

    Parameters
    ----------
    model : openvino.Model
        Is changed. Weights that are not float, as those of int8, stay as they are.

    Returns
    -------
    int
        How many there were.
    """
    found = [node for node in model.get_ordered_ops() if _fits(node)]
    for node in found:
        weight = _weight(node)
        assert weight is not None  # for the type checker: `_fits` says so
        quicker = _pairs(node.input_value(0), weight)
        quicker.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(quicker.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _fits(node: Any) -> bool:
    if node.get_type_name() != "Convolution":
        return False
    about, maps, weight = node.get_attributes(), node.input_value(0).get_partial_shape(), _weight(node)
    return (
        weight is not None
        and weight.shape[1] >= FEWEST_CHANNELS
        and weight.shape[2:] == (3, 3)
        and all(list(about[name]) == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
        and about["auto_pad"] in ("explicit", "notset")
        and not maps[3].is_dynamic
    )


def _weight(node: Any) -> npt.NDArray[np.float32] | None:
    source = node.input_value(1).get_node()
    return source.data if source.get_type_name() == "Constant" and source.data.dtype == np.float32 else None


def _pairs(maps: Any, weight: Any) -> Any:
    """Convolve (N, C, H, W) with a weight of (O, C, 3, 3)."""
    width, outputs = maps.get_partial_shape()[3].get_length(), weight.shape[0]
    pairs = -(-width // 2)
    padded = op.pad(maps, _whole(0, 0, 0, 1), _whole(0, 0, 0, 1 + 2 * pairs - width), "constant", np.float32(0))
    d = [op.slice(padded, _whole(k), _whole(k + 2 * pairs - 1), _whole(2), _whole(3)) for k in range(4)]  # (N, C, H, W / 2)
    seen = (op.subtract(d[0], d[2]), op.add(d[1], d[2]), op.subtract(d[2], d[1]), op.subtract(d[1], d[3]))
    taps = np.einsum("pk,ocrk->pocr", _TAPS, weight.astype(np.float64)).astype(np.float32)[..., None]  # (4, O, C, 3, 1)
    m = [op.convolution(s, op.constant(t), [1, 1], [1, 0], [1, 0], [1, 1]) for s, t in zip(seen, taps, strict=True)]
    pair = (op.add(op.add(m[0], m[1]), m[2]), op.subtract(op.subtract(m[1], m[2]), m[3]))
    columns = op.concat([op.unsqueeze(part, _whole(4)) for part in pair], 4)  # (N, O, H, W / 2, 2)
    whole = op.reshape(columns, _whole(0, outputs, 0, 2 * pairs), special_zero=True)
    return whole if width == 2 * pairs else op.slice(whole, _whole(0), _whole(width), _whole(1), _whole(3))


def _whole(*numbers: int) -> Any:
    return op.constant(np.array(numbers, np.int64))
