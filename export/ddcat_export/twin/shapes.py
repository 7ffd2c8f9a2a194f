"""The operators of ONNX that move values: shapes, parts, indices, constants; in torch and differentiable."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat_export.twin.base import Attributes, Inputs, NotSupportedError, as_tensor

__all__ = [
    "axes_of", "constant", "constant_of_shape", "depth_to_space", "expand", "flatten", "gather", "gather_elements",
    "reshape", "scatter_elements", "shape", "slice_", "space_to_depth", "split", "squeeze", "top_k", "transpose", "trilu",
    "unsqueeze",
]  # fmt: skip


def axes_of(inputs: Inputs, attributes: Attributes) -> list[int]:
    """Return the axes that an input or, in older opsets, an attribute names; none where neither does."""
    if len(inputs) > 1 and inputs[1] is not None:
        return inputs[1].tolist()  # type: ignore[no-any-return]
    return attributes.get("axes", [])  # type: ignore[no-any-return]


def reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Give values another shape; 0 keeps a side, unless `allowzero`."""
    values, shape = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        shape = [values.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    reshaped: Tensor = values.reshape(shape)
    return reshaped


def expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Repeat along sides of 1, of the values or of the shape."""
    values: Tensor = inputs[0]
    shape = [1] * (values.ndim - len(inputs[1])) + inputs[1].tolist()
    own = [1] * (len(shape) - values.ndim) + list(values.shape)
    return values.expand([size if other == 1 else other for size, other in zip(shape, own, strict=True)])


def transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Reorder axes; without `perm`, reverse them."""
    return inputs[0].permute(attributes.get("perm", list(reversed(range(inputs[0].ndim)))))  # type: ignore[no-any-return]


def flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Make two axes of all, before and from `axis`."""
    sides = inputs[0].shape
    return inputs[0].reshape(math.prod(sides[: attributes.get("axis", 1)]), -1)  # type: ignore[no-any-return]


def shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return the sides, of some axes."""
    sides = list(inputs[0].shape)
    return torch.tensor(sides[attributes.get("start", 0) : attributes.get("end", len(sides))], dtype=torch.int64)


def squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Drop axes of one place: those named, or all."""
    axes = axes_of(inputs, attributes)
    squeezed: Tensor = inputs[0].squeeze(tuple(axes)) if axes else inputs[0].squeeze()
    return squeezed


def unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Add axes of one place."""
    values, axes = inputs[0], axes_of(inputs, attributes)
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values  # type: ignore[no-any-return]


def slice_(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Take parts of axes, backwards too."""
    values, starts, ends, axes, steps = (*inputs, None, None)[:5]
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        side = values.shape[axis]
        # ONNX means the end of an axis by the largest int64, which torch takes for a fault: Python clips both alike
        start, end, step = slice(start, end, step).indices(side)  # noqa: PLW2901
        if step > 0:
            values = values[(slice(None),) * (axis % values.ndim) + (slice(start, end, step),)]
        else:
            values = values.index_select(axis, torch.arange(start, end, step, device=values.device))
    return values  # type: ignore[no-any-return]


def split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    """Part an axis by sizes, of an input or (before opset 13) an attribute, or into equal parts."""
    values, sizes = (*inputs, None)[:2]
    axis = attributes.get("axis", 0)
    if sizes is None and "split" not in attributes:
        return values.split(math.ceil(values.shape[axis] / attributes["num_outputs"]), axis)  # type: ignore[no-any-return]
    return values.split(attributes["split"] if sizes is None else sizes.tolist(), axis)  # type: ignore[no-any-return]


def _positive(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index)


def gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Take places of an axis; the index may have any shape, none too."""
    values, index = inputs
    axis = attributes.get("axis", 0) % values.ndim
    gathered: Tensor = values.index_select(axis, _positive(index, values.shape[axis]).flatten())
    return gathered.reshape([*values.shape[:axis], *index.shape, *values.shape[axis + 1 :]])


def gather_elements(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Take a place of an axis for each element."""
    values, index = inputs
    axis = attributes.get("axis", 0)
    return values.gather(axis, _positive(index, values.shape[axis]))  # type: ignore[no-any-return]


def scatter_elements(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Put an update at a place of an axis for each element."""
    values, index, updates = inputs
    axis = attributes.get("axis", 0)
    return values.scatter(axis, _positive(index, values.shape[axis]), updates)  # type: ignore[no-any-return]


def top_k(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, Tensor]:
    """Return the largest or smallest of an axis, in order, and their places."""
    values, count = inputs
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    order = values.argsort(dim=axis, descending=largest, stable=True)  # of equal ones, the first
    places = order.narrow(axis, 0, int(count))
    return values.gather(axis, places), places


def trilu(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Keep the upper or the lower triangle of matrices."""
    diagonal = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else 0
    return (torch.triu if attributes.get("upper", 1) else torch.tril)(inputs[0], diagonal)


def depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Make blocks of pixels of channels."""
    maps, block = inputs[0], attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"DCR":
        count, channels, height, width = maps.shape
        maps = maps.reshape(count, block**2, channels // block**2, height, width).transpose(1, 2)
        maps = maps.reshape(count, channels, height, width)
    return F.pixel_shuffle(maps, block)


def space_to_depth(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Make channels of blocks of pixels."""
    maps, block = inputs[0], attributes["blocksize"]
    parts = F.pixel_unshuffle(maps, block)
    count, channels, height, width = parts.shape
    own: Tensor = parts.reshape(count, maps.shape[1], block**2, height, width).transpose(1, 2)
    return own.reshape(count, channels, height, width)


def constant(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return the value of an attribute."""
    ((name, value),) = attributes.items()
    if name == "value":
        return as_tensor(value)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    raise NotSupportedError(f"a constant by {name}")


def constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Fill a shape with one value."""
    value = as_tensor(attributes["value"]) if "value" in attributes else torch.zeros(1)
    return value.reshape(()).expand(inputs[0].tolist())
