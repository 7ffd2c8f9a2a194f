from typing import Any, get_args

import pytest
import torch

from ddcat_bench.timing.reference_networks import PlainSegmenter
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.networks import build_segmenter


@pytest.mark.parametrize("context", get_args(ContextName))
@pytest.mark.parametrize(
    "backbone",
    [
        {"backbone": "resnet10", "width": 8, "stem": "plain"},
        {"backbone": "resnet34", "width": 4},
        {"backbone": "resnet50", "width": 4},
        {"backbone": "mobilenet_v2"},
        {"backbone": "mobilenet_v2", "output_stride": 16},
    ],
)
def test_plain_networks_compute_what_ours_do(backbone: dict[str, Any], context: ContextName) -> None:
    torch.manual_seed(0)
    model = ModelConfig(context=context, dropout=0, **backbone)
    heads = ("main", "auxiliary", "mask", "deep")
    ours = build_segmenter(model, classes=5, heads=heads).double()
    plain = PlainSegmenter(model, classes=5, heads=heads).double()
    plain.load_state_dict(ours.state_dict(), strict=True)
    images = torch.rand(2, 3, 50, 69, dtype=torch.float64)
    for mode in (True, False):  # in train() first, for lived-in statistics
        expected, found = ours.train(mode)(images, heads), plain.train(mode)(images, heads)
        assert set(found) == set(expected)
        for head in heads:
            torch.testing.assert_close(found[head], expected[head], rtol=1e-9, atol=1e-9)


def test_plain_networks_have_the_paper_s_size() -> None:
    """Parameters of the released checkpoints, with 21 classes."""
    for context, sizes in (("pyramid", (49_081_578, 86_844_161)), ("aspp", (39_440_362, 40_102_657))):
        for heads, size in zip((("main", "deep"), ("main", "auxiliary", "mask", "deep")), sizes, strict=True):
            with torch.device("meta"):
                network = PlainSegmenter(ModelConfig(backbone="resnet50", context=context), classes=21, heads=heads)
            assert sum(parameter.numel() for parameter in network.parameters()) == size
