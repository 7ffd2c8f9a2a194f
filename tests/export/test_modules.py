"""A network in Python becomes a bundle without a configuration."""

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


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Network(21), {"classes": [f"class {index}" for index in range(19)]}, "logits of 21 classes, and 19 are named"),
        (Network(), {}, "use --classes FILE with the names of its classes"),
        (ChannelsLast(), {"classes": NAMES}, r"takes no images \(N, 3, H, W\) of 71 x 103: .* permute in a module of yours"),
        (Text(), {"classes": NAMES}, r"Text gives a str, expected logits \(N, K, h, w\): wrap it in a module"),
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
