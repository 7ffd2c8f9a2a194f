"""A network in Python becomes a bundle without a configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddcat
from ddcat.engines import open_engine
from ddcat_export.errors import ExportError
from ddcat_train.pixels import to_planes

NAMES = ["road", "car", "sky"]


class Network(nn.Module):
    """Normalises itself, and gives logits at half of the size in a dict, as torchvision's do."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pooled = nn.AdaptiveAvgPool2d(3)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Any]:
        maps = self.body((images - 0.5) / 0.25)
        pooled = nn.functional.interpolate(self.pooled(maps), size=maps.shape[2:], mode="bilinear")
        return {"out": self.head(maps + pooled)}


def test_labels_are_those_of_pytorch(tmp_path: Path) -> None:
    network = Network()
    done = ddcat.export(network, tmp_path / "bundle", classes=NAMES)
    assert (tmp_path / "bundle.onnx").is_file()  # which a gate compares the engine with
    assert done.author == "PyTorch"
    assert done.parity is not None
    assert len(done.parity.shapes) == 7
    images = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)
    with torch.no_grad(), open_engine(done.bundle, threads=1) as engine:
        logits = nn.functional.interpolate(network(to_planes(images))["out"], size=(45, 70), mode="bilinear")
        assert (engine.infer(images).labels == logits.argmax(1).numpy()).mean() > 0.999
    assert done.bundle.manifest.class_table().names == tuple(NAMES)


class Even(Network):
    def forward(self, images: Tensor) -> dict[str, Any]:
        if images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError("expected multiples of 32")
        return super().forward(images)


class ChannelsLast(Network):
    def forward(self, images: Tensor) -> dict[str, Any]:
        return super().forward(images.permute(0, 3, 1, 2))


class Text(Network):
    def forward(self, images: Tensor) -> Any:
        return "a picture"


class Returns(Network):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(super().forward(images)["out"])


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Network(21), {"classes": [f"class {index}" for index in range(19)]}, "logits of 21 classes, but 19 are named"),
        (Network(), {}, "use --classes FILE with the names of its classes"),
        (Network(), {"classes": ["a", "b", "a"]}, "classes: two are named 'a'"),
        (Network(), {"classes": ["a", "", "b"]}, "classes: a class has a name of 0 characters"),
        (Network(), {"classes": [1, 2, 3]}, r"classes \[1, 2, 3\]: expected names, such as"),
        (Network(), {"classes": 3}, "classes 3: expected names, such as"),
        (Network(), {"classes": ["a"]}, "classes: expected 2 to 254 classes, got 1"),
        (Network(), {"classes": NAMES, "sizes": (64, 96)}, r"sizes \(64, 96\): expected one pair or several"),
        (Network(), {"classes": NAMES, "sizes": ((64,),)}, r"sizes \(\(64,\),\): expected one pair or several"),
        (Network(), {"classes": NAMES, "sizes": ()}, r"sizes \(\): expected one pair or several"),
        (Network(), {"classes": NAMES, "sizes": ((64.5, 96),)}, "expected whole numbers of pixels"),
        (Network(), {"classes": NAMES, "sizes": ((0, 5),)}, "expected whole numbers of pixels"),
        (Network(), {"classes": NAMES, "max_batch": 0}, "max_batch 0: expected 1 or more"),
        (Network(), {"classes": NAMES, "tiles": 10}, "tiles 10: expected a side of 64 to 16384 pixels"),
        (ChannelsLast(), {"classes": NAMES}, r"fails on images \(N, 3, H, W\) of 71 x 103: .* a module that permutes"),
        (Text(), {"classes": NAMES}, r"Text returns a str, expected logits \(N, K, h, w\): wrap it in a module"),
        (
            Returns(lambda logits: logits.softmax(1)),
            {"classes": NAMES},
            "Returns returns probabilities, expected logits: remove its",
        ),
        (
            Returns(lambda logits: nn.functional.interpolate(logits, (71, 103)).permute(0, 2, 3, 1)),
            {"classes": NAMES},
            r"Returns returns \(N, H, W, K\), expected logits \(N, K, h, w\): let it return logits\.permute\(0, 3, 1, 2\)",
        ),
        (Returns(nn.functional.dropout), {"classes": NAMES}, "Returns returns other logits each time"),
        (Network().double(), {"classes": NAMES}, r"Network has weights in torch\.float64, .*: call \.float\(\) on it"),
        (torch.jit.ScriptModule(), {"classes": NAMES}, "is compiled by TorchScript, which cannot be exported"),
        (Even(), {"classes": NAMES}, r"the network fails on images of \d+ x \d+: expected multiples of 32; use sizes=\(\("),
        (Network(), {"classes": NAMES, "output": "out"}, "output is for ONNX files, and Network is a network in Python"),
    ],
)
def test_what_is_no_such_network(network: nn.Module, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        ddcat.export(network, tmp_path / "bundle", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_one_size_and_the_names_of_its_configuration(tmp_path: Path) -> None:
    network = Even()
    network.config = type("Config", (), {"id2label": dict(enumerate(NAMES))})()  # as transformers' models have it
    done = ddcat.export(network, tmp_path / "bundle", sizes=((64, 96),))
    assert done.bundle.manifest.class_table().names == tuple(NAMES)
    assert {shape[1:] for shape in done.parity.shapes} == {(64, 96)}  # type: ignore[union-attr]
