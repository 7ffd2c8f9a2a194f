"""Networks: backbones, contexts and heads, composed into one `Segmenter`."""

from collections.abc import Callable, Sequence
from typing import Literal

from ddcat_train.names import BackboneName, ContextName, Head
from ddcat_train.networks.contexts import ASPP, PyramidPooling
from ddcat_train.networks.mobilenet import MobileNetV2
from ddcat_train.networks.resnet import ResNet, resnet10, resnet18, resnet34, resnet50, resnet101
from ddcat_train.networks.segmenter import Features, Segmenter
from ddcat_train.networks.weights import load_backbone

__all__ = [
    "BACKBONES",
    "CONTEXTS",
    "Features",
    "Segmenter",
    "build_segmenter",
    "load_backbone",
]

BACKBONES: dict[BackboneName, Callable[[int, Literal[8, 16]], ResNet | MobileNetV2]] = {
    "resnet10": lambda width, stride: resnet10(width),
    "resnet18": lambda width, stride: resnet18(width),
    "resnet34": lambda width, stride: resnet34(width),
    "resnet50": lambda width, stride: resnet50(width),
    "resnet101": lambda width, stride: resnet101(width),
    "mobilenet_v2": lambda width, stride: MobileNetV2(stride),
}

CONTEXTS: dict[ContextName, type[PyramidPooling | ASPP]] = {"pyramid": PyramidPooling, "aspp": ASPP}


def build_segmenter(
    *,
    backbone: BackboneName,
    context: ContextName,
    classes: int,
    heads: Sequence[Head] = ("main",),
    width: int = 64,
    output_stride: Literal[8, 16] = 8,
) -> Segmenter:
    """
    Compose a network with random weights.

    Parameters
    ----------
    backbone, context : str
        Keys of `BACKBONES` and `CONTEXTS`.
    classes : int
    heads : sequence of Head
    width : int
        Channels of a ResNet's first stage; MobileNetV2 has one width.
    output_stride : 8 or 16
        ResNets are built for 8 only.
    """
    body = BACKBONES[backbone](width, output_stride)
    return Segmenter(body, CONTEXTS[context](body.channels), classes=classes, heads=heads)
