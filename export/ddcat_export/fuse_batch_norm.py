"""Fold batch norms into the convolutions before them."""

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddcat_train.networks.convolution import Conv2d

N = TypeVar("N", bound=nn.Module)

__all__ = ["fold_batch_norms"]


def fold_batch_norms(network: N) -> N:
    """
    Copy a network and fold each batch norm into the weight and bias of the convolution before it.

    Only our own convolutions are folded. The exporter misses some: the convolution over a `Context` is a sum of several.

    Parameters
    ----------
    network : nn.Module
        In eval() mode.

    Returns
    -------
    nn.Module
        Equal to the network up to rounding; the weights are computed in float64 and rounded once.
    """
    folded = copy.deepcopy(network)
    for parent in list(folded.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, Conv2d) and isinstance(norm, _BatchNorm):
                _fold(convolution, norm)
                setattr(parent, name, nn.Identity())
    return folded


def _fold(convolution: Conv2d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        factor = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        before = 0.0 if convolution.bias is None else convolution.bias.double()
        bias = norm.bias.double() + (before - norm.running_mean.double()) * factor
        weight = convolution.weight.double() * factor[:, None, None, None]
        convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
        convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)
