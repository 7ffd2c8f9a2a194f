from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.paper.reference_networks import PlainSegmenter
from ddcat_bench.timing.pytorch_models import original_network
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.networks import build_segmenter

PAPERS: tuple[ContextName, ...] = ("pyramid", "aspp")  # the contexts of the paper, whose networks are written out here


@pytest.mark.parametrize("context", PAPERS)
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


class Operations(TorchDispatchMode):
    """The operations that compute: views and copies are free, or not the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0].rstrip("_")
        if name not in ("view", "_to_copy", "clone", "copy", "detach", "slice", "expand", "select", "alias", "zeros", "empty"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("context", PAPERS)
@pytest.mark.parametrize("backbone", [{"backbone": "resnet50", "width": 4}, {"backbone": "mobilenet_v2"}])
def test_the_original_that_is_timed_computes_with_plain_layers(backbone: dict[str, Any], context: ContextName) -> None:
    torch.manual_seed(0)
    model = ModelConfig(context=context, **backbone)
    ours = build_segmenter(model, classes=5, heads=("main", "auxiliary")).eval()
    plain = PlainSegmenter(model, classes=5, heads=("main", "auxiliary")).eval()
    plain.load_state_dict(ours.state_dict(), strict=True)
    images = torch.rand(2, 3, 50, 69)
    with torch.no_grad():
        fast = ours(images)
    original = original_network(SimpleNamespace(segmenter=lambda: ours), torch.device("cpu"))  # type: ignore[arg-type]
    with torch.no_grad(), Operations() as of_plain:
        expected = plain(images, ("main",))["main"]
    with torch.no_grad(), Operations() as of_original:
        found = original(images)
    assert torch.equal(found, expected)
    assert sorted(of_original.names) == sorted(of_plain.names)  # pooled maps are upsampled one after the other, or at the end
    torch.testing.assert_close(expected, fast, rtol=1e-4, atol=1e-4)


def test_plain_networks_have_the_paper_s_size() -> None:
    """Parameters of the released checkpoints, with 21 classes."""
    for context, sizes in (("pyramid", (49_081_578, 86_844_161)), ("aspp", (39_440_362, 40_102_657))):
        for heads, size in zip((("main", "deep"), ("main", "auxiliary", "mask", "deep")), sizes, strict=True):
            with torch.device("meta"):
                network = PlainSegmenter(ModelConfig(backbone="resnet50", context=context), classes=21, heads=heads)
            assert sum(parameter.numel() for parameter in network.parameters()) == size
