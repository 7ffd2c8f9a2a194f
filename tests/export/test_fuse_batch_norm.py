"""Folded batch norms: the same network, up to rounding."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from ddcat_export.fuse_batch_norm import fold_batch_norms
from ddcat_train.config import ModelConfig
from ddcat_train.networks import build_segmenter


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": "resnet10", "width": 8},
        {"backbone": "resnet10", "width": 8, "context": "aspp"},
        {"backbone": "mobilenet_v2", "output_stride": 16},
    ],
)
def test_it_computes_the_same_without_any(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_segmenter(ModelConfig(**model), classes=4).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(-2, 2)
                module.bias.normal_()
    network.eval()
    images = torch.rand(2, 3, 49, 66, dtype=torch.float64)
    folded = fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        wanted = network(images)
        torch.testing.assert_close(folded(images), wanted, rtol=1e-9, atol=1e-9 * float(wanted.std()))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # it is a copy


def test_a_norm_that_follows_no_convolution_of_ours_stays() -> None:
    network = cast("nn.Sequential", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).eval()
    assert isinstance(fold_batch_norms(network)[1], nn.BatchNorm2d)
