"""
The exponential moving average of a network.

It is a network of its own, in eval() mode. Batch norm's running statistics are averaged as the weights are: those of the latest
weights would not fit. Its counters are copied.
"""

import copy
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

__all__ = ["init_ema", "update_ema"]

_Network = TypeVar("_Network", bound=nn.Module)


def init_ema(network: _Network) -> _Network:
    """Return a copy of a network as the start of its average."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, *, decay: float, step: int) -> None:
    """
    Move an average towards a network: d * average + (1 - d) * network.

    d is min(decay, (1 + step) / (10 + step)), so that the random weights of the start are soon forgotten.

    Parameters
    ----------
    average : nn.Module
        From `init_ema`; changed in place.
    decay : float
        In (0, 1).
    step : int
        Number of updates before this one.
    """
    mine, its = ([*chain(one.parameters(), one.buffers())] for one in (average, network))
    averaged = [tensor.is_floating_point() for tensor in mine]
    torch._foreach_lerp_(
        [tensor for tensor, is_averaged in zip(mine, averaged, strict=True) if is_averaged],
        [tensor for tensor, is_averaged in zip(its, averaged, strict=True) if is_averaged],
        1 - min(decay, (1 + step) / (10 + step)),
    )
    for tensor, other, is_averaged in zip(mine, its, averaged, strict=True):
        if not is_averaged:
            tensor.copy_(other)
