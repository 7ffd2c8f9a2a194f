"""Batch norm over the batch of all ranks."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddcat_train.distributed.ranks import connected

N = TypeVar("N", bound=nn.Module)

__all__ = ["SyncBatchNorm2d", "synchronise_batch_norm"]


def synchronise_batch_norm(network: N) -> N:
    """
    Make every batch norm of a network use the images of all ranks in train(); in eval() it neither changes nor communicates.

    Parameters and buffers keep their names and stay the same objects. On CUDA the layers are torch's SyncBatchNorm, whose host
    waits for the device once in every layer, and which refuses a CPU; there they are `SyncBatchNorm2d`.
    """
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # the class differs in behaviour, not in state
    return network


class SyncBatchNorm2d(nn.BatchNorm2d):
    """
    Batch norm whose statistics in train() are those of the images of all ranks, which may be of different number.

    The same numbers as of one process with the whole batch, up to rounding: outputs, gradients with respect to the input, and
    running statistics (the variance unbiased by the count of all ranks). Gradients of weight and bias are a rank's part, to be
    summed as those of every other parameter.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(maps)
        assert self.momentum is not None  # our networks use no cumulative average
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        mean, variance, count = _statistics(maps.detach())
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        scale = (variance + self.eps).rsqrt()
        return _Normalise.apply(maps, self.weight, self.bias, mean, scale, count)  # type: ignore[no-any-return, no-untyped-call]


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel, and the count of their values, over all ranks."""
    exact = maps.float() if maps.dtype == torch.bfloat16 else maps
    variance, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    own = torch.cat([mean, variance, mean.new_tensor([maps.numel() / maps.shape[1]])])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    with connected():
        dist.all_gather(every, own)
    means, variances, counts = torch.split(torch.stack(every), [maps.shape[1], maps.shape[1], 1], 1)  # (R, C), (R, C), (R, 1)
    count = counts.sum()
    share = counts / count
    common = (share * means).sum(0)
    return common, (share * (variances + (means - common) ** 2)).sum(0), count


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, where mean and deviation depend on the x of all ranks."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, scale, count)
        factor = weight * scale
        return torch.addcmul(_channels(bias - mean * factor), maps, _channels(factor)).to(maps.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, scale, count = ctx.saved_tensors
        unit = (maps - _channels(mean)) * _channels(scale)
        bias_gradient, weight_gradient = gradient.to(unit.dtype).sum((0, 2, 3)), (gradient * unit).sum((0, 2, 3))
        sums = torch.stack([bias_gradient, weight_gradient])
        with connected():
            dist.all_reduce(sums)
        through_mean, through_deviation = sums / count
        maps_gradient = _channels(weight * scale) * (gradient - _channels(through_mean) - unit * _channels(through_deviation))
        return maps_gradient.to(maps.dtype), weight_gradient, bias_gradient, None, None, None


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]  # (C,) -> (C, 1, 1), beside (N, C, H, W)
