"""Convolutions with a constant batch norm folded in, and a faster gradient of their weights on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Conv2d", "Layers", "conv_bn"]

# Below it a matrix product has too little to do for each tap that is copied for it.
_FEWEST_CHANNELS = 128


class Conv2d(nn.Conv2d):
    """
    A convolution as torch's, whose weights can be given in place of its own.

    Attributes
    ----------
    folds : bool
        Whether it pays to fold a batch norm into the weight.
    """

    folds = True

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        return self.convolve(maps, self.weight, self.bias)

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W') with another weight and bias of the same shapes."""
        learns = self.training and weight.requires_grad and torch.is_grad_enabled() and bias is None
        if learns and min(weight.shape[:2]) >= _FEWEST_CHANNELS and self._same_size(maps, weight):
            return _SameSize.apply(maps, weight, self.dilation)  # type: ignore[no-any-return, no-untyped-call]
        output: Tensor = self._conv_forward(maps, weight, bias)
        return output

    def _same_size(self, maps: Tensor, weight: Tensor) -> bool:
        """Whether this is one of the convolutions that are computed here: 3x3, undecimated, on a CPU, with channels last."""
        return (
            weight.shape[2:] == (3, 3)
            and maps.device.type == "cpu"
            and maps.dtype == weight.dtype
            and maps.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and maps.is_contiguous(memory_format=torch.channels_last)
            and self.groups == 1
            and self.stride == (1, 1)
            and self.padding == self.dilation
        )


class _SameSize(torch.autograd.Function):
    """
    A 3x3 convolution that keeps the size, on a CPU, with channels last.

    The gradient of its weight is one matrix product for each tap, over the places where that tap lies inside the map. oneDNN's
    takes longer, and several times as long where the dilation is so large that most taps lie outside.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.dilation = dilation
        return F.conv2d(maps, weight, padding=dilation, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        before = after = None
        if ctx.needs_input_grad[0]:
            same = (ctx.dilation, ctx.dilation, False, (0, 0), 1, (True, False, False))
            before, *_ = torch.ops.aten.convolution_backward(gradient, maps, weight, None, (1, 1), *same)
        if ctx.needs_input_grad[1]:
            after = _weight_gradient(maps, gradient, ctx.dilation)
        return before, after, None


def _weight_gradient(maps: Tensor, gradient: Tensor, dilation: tuple[int, int]) -> Tensor:
    height, width = maps.shape[-2:]
    inputs, outputs = maps.shape[1], gradient.shape[1]
    sources, targets = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (N, H, W, C), (N, H, W, O)
    taps = maps.new_zeros(3, 3, outputs, inputs)
    for row in range(3):
        for column in range(3):
            above, left = (row - 1) * dilation[0], (column - 1) * dilation[1]
            rows = slice(max(0, -above), height - max(0, above))
            columns = slice(max(0, -left), width - max(0, left))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            seen = sources[:, rows.start + above : rows.stop + above, columns.start + left : columns.stop + left]
            torch.mm(targets[:, rows, columns].reshape(-1, outputs).T, seen.reshape(-1, inputs), out=taps[row, column])
    return taps.permute(2, 3, 0, 1)  # (O, C, 3, 3)


class Layers(nn.Sequential):
    """Layers one after the other, like torch's `Sequential`; a batch norm is folded into the convolution before it."""

    def forward(self, maps: Any) -> Any:
        """Apply all layers."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, Conv2d) and layers and isinstance(layers[0], _BatchNorm):
                maps = conv_bn(maps, layer, layers.pop(0))
            else:
                maps = layer(maps)
        return maps


def conv_bn(maps: Any, convolution: Conv2d, norm: nn.Module) -> Tensor:
    """
    Apply a convolution without bias and a batch norm.

    In eval() the norm is a constant factor and shift of each channel, and becomes the convolution's: two passes over the maps
    less in every forward and backward of an attack. An exporter sees the layers as they are; folding is its own affair.

    Parameters
    ----------
    maps : what the convolution takes
    norm : nn.BatchNorm2d or one of its kind; nn.Identity where it has been folded for good
    """
    if isinstance(norm, nn.Identity):
        return convolution(maps)  # type: ignore[no-any-return]
    assert isinstance(norm, _BatchNorm)
    if norm.training or not convolution.folds or torch.compiler.is_compiling():
        return norm(convolution(maps))  # type: ignore[no-any-return]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.convolve(maps, convolution.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor)
