"""
Operations in a form that exports right for images of any size, for networks of other libraries.

torch's exporter makes constants of some sizes in adaptive pooling, silently. Shapes behind its group norm are not inferred, and
its Einsum is neither counted nor quantised. While a network is traced, what computes the same takes their place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddcat_export.errors import ExportError
from ddcat_train.networks.layers import bin_averages

__all__ = ["ExportForms"]


class ExportForms(TorchFunctionMode):
    """Computes adaptive average pooling, group norm and sums of products in operators that every size and runtime has."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, or what computes the same."""
        return _INSTEAD.get(func, func)(*args, **dict(kwargs or {}))


def _adaptive_average(maps: Tensor, output_size: Any) -> Tensor:
    sides = output_size if isinstance(output_size, list | tuple) else (output_size, output_size)
    if all(side == 1 for side in sides):
        return maps.mean((-2, -1), keepdim=True)
    rows, columns = (maps.shape[axis] if side is None else side for axis, side in zip((-2, -1), sides, strict=True))
    height, width = maps.shape[-2:]
    # (R, H) times (..., H, W) times (W, C)
    return bin_averages(height, rows, maps) @ maps @ bin_averages(width, columns, maps).transpose(0, 1)


def _adaptive_maximum(maps: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    sides = output_size if isinstance(output_size, list | tuple) else (output_size, output_size)
    if all(side == 1 for side in sides) and not return_indices:
        return maps.amax((-2, -1), keepdim=True)
    if all(isinstance(side, int) for side in maps.shape[-2:]):
        return F.adaptive_max_pool2d(maps, output_size, return_indices=return_indices)  # type: ignore[call-overload]
    raise ExportError(f"adaptive max pooling to {sides[0]} x {sides[1]} cannot be exported for all sizes: use --size HxW")


def _group_norm(
    maps: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = maps.reshape(maps.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    unit = (centred / (centred.pow(2).mean(2, keepdim=True) + eps).sqrt()).reshape(maps.shape)
    shape = (-1, *([1] * (maps.ndim - 2)))
    if weight is not None:
        unit = unit * weight.view(shape)
    return unit if bias is None else unit + bias.view(shape)


def _einsum(equation: Any, *operands: Any) -> Tensor:
    given, arrow, result = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    axes = given.split(",")
    simple = arrow and "." not in equation and len(axes) == len(operands) == 2
    if not simple or any(len(set(names)) != len(names) for names in (*axes, result)):
        return torch.einsum(equation, *operands)
    first, second = axes
    if set(result) != {name for name in first + second if name in result} or (set(first) ^ set(second)) - set(result):
        return torch.einsum(equation, *operands)  # sums over one factor alone
    sizes = {
        name: size for names, maps in zip(axes, operands, strict=True) for name, size in zip(names, maps.shape, strict=True)
    }
    batch = [name for name in first if name in second and name in result]
    summed = [name for name in first if name in second and name not in result]
    rows, columns = ([name for name in names if name not in other] for names, other in ((first, second), (second, first)))
    left = operands[0].permute([first.index(name) for name in (*batch, *rows, *summed)])
    right = operands[1].permute([second.index(name) for name in (*batch, *summed, *columns)])
    outer = [sizes[name] for name in batch]
    product = left.reshape(*outer, *_flat(sizes, rows), *_flat(sizes, summed)) @ right.reshape(
        *outer, *_flat(sizes, summed), *_flat(sizes, columns)
    )
    order = (*batch, *rows, *columns)
    found: Tensor = product.reshape([sizes[name] for name in order]).permute([order.index(name) for name in result])
    return found


def _flat(sizes: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [reduce(mul, (sizes[name] for name in names), 1)]


_INSTEAD: Mapping[Any, Callable[..., Any]] = {
    F.adaptive_avg_pool2d: _adaptive_average,
    torch._C._nn.adaptive_avg_pool2d: _adaptive_average,
    F.adaptive_max_pool2d: _adaptive_maximum,
    F.group_norm: _group_norm,
    torch.einsum: _einsum,
    torch.group_norm: lambda maps, groups, weight=None, bias=None, eps=1e-5, cudnn=True: _group_norm(
        maps, groups, weight, bias, eps
    ),
}
