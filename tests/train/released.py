"""
The files of others, written down from their description alone: keys, shapes and what the networks in them compute.

Nothing here knows the networks of ddcat_train.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET50 = (3, 4, 6, 3)


def batch_norm(key: str, channels: int) -> Shapes:
    vector = {f"{key}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**vector, f"{key}.num_batches_tracked": ()}


def stages(width: int, blocks: tuple[int, ...], *, bottleneck: bool, stem: int) -> Shapes:
    shapes: Shapes = {}
    inputs = stem
    for stage, count in enumerate(blocks, 1):
        planes = width * 2 ** (stage - 1)
        outputs = 4 * planes if bottleneck else planes
        for block in range(count):
            key = f"layer{stage}.{block}"
            if bottleneck:
                shapes |= {f"{key}.conv1.weight": (planes, inputs, 1, 1), **batch_norm(f"{key}.bn1", planes)}
                shapes |= {f"{key}.conv2.weight": (planes, planes, 3, 3), **batch_norm(f"{key}.bn2", planes)}
                shapes |= {f"{key}.conv3.weight": (outputs, planes, 1, 1), **batch_norm(f"{key}.bn3", outputs)}
            else:
                shapes |= {f"{key}.conv1.weight": (planes, inputs, 3, 3), **batch_norm(f"{key}.bn1", planes)}
                shapes |= {f"{key}.conv2.weight": (planes, planes, 3, 3), **batch_norm(f"{key}.bn2", planes)}
            if block == 0 and (stage > 1 or inputs != outputs):
                shapes |= {f"{key}.downsample.0.weight": (outputs, inputs, 1, 1), **batch_norm(f"{key}.downsample.1", outputs)}
            inputs = outputs
    return shapes


def semseg_stem(names: tuple[str, ...], width: int) -> Shapes:
    first, norm1, second, norm2, third, norm3 = names
    return {
        f"{first}.weight": (width, 3, 3, 3), **batch_norm(norm1, width),
        f"{second}.weight": (width, width, 3, 3), **batch_norm(norm2, width),
        f"{third}.weight": (2 * width, width, 3, 3), **batch_norm(norm3, 2 * width),
    }  # fmt: skip


def semseg_resnet(width: int = 64, blocks: tuple[int, ...] = RESNET50, *, bottleneck: bool = True) -> Shapes:
    """semseg's initial weights: its deep stem, a classifier of 1000 classes."""
    channels = width * 8 * (4 if bottleneck else 1)
    return {
        **semseg_stem(("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), width),
        **stages(width, blocks, bottleneck=bottleneck, stem=2 * width),
        "fc.weight": (1000, channels), "fc.bias": (1000,),
    }  # fmt: skip


def torchvision_resnet(width: int = 64, blocks: tuple[int, ...] = RESNET50, *, bottleneck: bool = True) -> Shapes:
    channels = width * 8 * (4 if bottleneck else 1)
    return {
        "conv1.weight": (width, 3, 7, 7), **batch_norm("bn1", width),
        **stages(width, blocks, bottleneck=bottleneck, stem=width),
        "fc.weight": (1000, channels), "fc.bias": (1000,),
    }  # fmt: skip


def head(key: str, inputs: int, hidden: int, kernel: int, outputs: int) -> Shapes:
    return {
        f"{key}.0.weight": (hidden, inputs, kernel, kernel), **batch_norm(f"{key}.1", hidden),
        f"{key}.4.weight": (outputs, hidden, 1, 1), f"{key}.4.bias": (outputs,),
    }  # fmt: skip


def segmenter(
    context: str, classes: int, *, branches: int, width: int = 64, blocks: tuple[int, ...] = RESNET50, bottleneck: bool = True
) -> Shapes:
    """A released PSPNet-50 ("ppm") or DeepLabv3-50 ("aspp") with one branch or three, and deep supervision."""
    channels = 8 * width * (4 if bottleneck else 1)  # 2048
    shapes = {
        **semseg_stem(("layer0.0", "layer0.1", "layer0.3", "layer0.4", "layer0.6", "layer0.7"), width),
        **stages(width, blocks, bottleneck=bottleneck, stem=2 * width),
    }
    if context == "ppm":
        kernel, hidden, wide = 3, channels // 4, 2 * channels  # 512, 4096
        for place in range(4):
            shapes |= {
                f"ppm.features.{place}.1.weight": (hidden, channels, 1, 1),
                **batch_norm(f"ppm.features.{place}.2", hidden),
            }
    else:
        kernel, hidden, wide = 1, channels // 8, channels * 5 // 8  # 256, 1280
        for place, size in enumerate((1, 3, 3, 3)):
            shapes |= {f"aspp.convs.{place}.0.weight": (hidden, channels, size, size)}
            shapes |= batch_norm(f"aspp.convs.{place}.1", hidden)
        shapes |= {"aspp.convs.4.1.weight": (hidden, channels, 1, 1), **batch_norm("aspp.convs.4.2", hidden)}
    outputs = {"cls": classes} if branches == 1 else {"cls1": classes, "cls2": classes, "mask1": 2}
    for name, count in outputs.items():
        shapes |= head(name, wide, hidden, kernel, count)
    return shapes | head("aux" if branches == 1 else "aux_cls1", channels // 2, channels // 8, kernel, classes)


def parameters(shapes: Shapes) -> int:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(statistics))


def empty(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes that take no room, neither in memory nor in a file."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights with which signals neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def values() -> Iterator[tuple[str, Tensor]]:
        for key, shape in shapes.items():
            if key.endswith("num_batches_tracked"):
                yield key, torch.tensor(7)
            elif len(shape) > 1:
                fan_in = torch.Size(shape[1:]).numel()
                yield key, torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
            elif key.endswith("running_var") or (key.endswith("weight")):
                yield key, 0.5 + torch.rand(shape, generator=generator) / 2
            else:
                yield key, torch.randn(shape, generator=generator) / 10

    return dict(values())


class Layers:
    """The layers of a file, by their keys."""

    corners = True  # of resizing

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def _conv(self, key: str, maps: Tensor, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Tensor:
        weight = self._weights[f"{key}.weight"]
        around = dilation * (weight.shape[-1] // 2) if padding is None else padding
        groups = maps.shape[1] // weight.shape[1]
        return F.conv2d(maps, weight, self._weights.get(f"{key}.bias"), stride, around, dilation, groups)

    def _norm(self, key: str, maps: Tensor) -> Tensor:
        mean, var, weight, bias = (self._weights[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(maps, mean, var, weight, bias, training=False, eps=1e-5)

    def _resize(self, maps: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=self.corners)

    def _block(self, key: str, maps: Tensor, stride: int, dilation: int, second: int = 1) -> Tensor:
        """Of a ResNet; `second` is the dilation of a basic block's second convolution."""
        bottleneck = f"{key}.conv3.weight" in self._weights
        steps = ((1, 1), (stride, dilation), (1, 1)) if bottleneck else ((stride, dilation), (1, second))
        out = maps
        for place, (step, spread) in enumerate(steps, 1):
            out = self._norm(f"{key}.bn{place}", self._conv(f"{key}.conv{place}", out, step, spread))
            out = F.relu(out) if place < len(steps) else out
        if f"{key}.downsample.0.weight" in self._weights:
            maps = self._norm(f"{key}.downsample.1", self._conv(f"{key}.downsample.0", maps, stride))
        elif f"{key}.downsample.1.weight" in self._weights:
            if stride > 1:
                maps = F.avg_pool2d(maps, stride, stride, ceil_mode=True, count_include_pad=False)
            maps = self._norm(f"{key}.downsample.2", self._conv(f"{key}.downsample.1", maps))
        return F.relu(out + maps)

    @staticmethod
    def _normalised(images: Tensor) -> Tensor:
        return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


class Reference(Layers):
    """What a file computes."""

    def resnet(self, images: Tensor, stem: tuple[tuple[str, str], ...]) -> tuple[Tensor, Tensor]:
        """Maps of layers 3 and 4 of normalised images; the last two dilated, as semseg has them."""
        maps = images
        for place, (conv, norm) in enumerate(stem):
            maps = F.relu(self._norm(norm, self._conv(conv, maps, stride=1 if place else 2)))
        maps = F.max_pool2d(maps, 3, stride=2, padding=1)
        found = {}
        for stage, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            block = 0
            while f"layer{stage}.{block}.conv1.weight" in self._weights:
                maps = self._block(f"layer{stage}.{block}", maps, stride if block == 0 else 1, dilation, dilation)
                block += 1
            found[stage] = maps
        return found[3], found[4]

    def segment(self, images: Tensor, head: str) -> Tensor:
        """Logits of one head, of the images' size."""
        normalised = self._normalised(images)
        third, last = self.resnet(normalised, (("layer0.0", "layer0.1"), ("layer0.3", "layer0.4"), ("layer0.6", "layer0.7")))
        maps = third if head in ("aux", "aux_cls1") else self._context(last)
        hidden = F.relu(self._norm(f"{head}.1", self._conv(f"{head}.0", maps)))
        return self._resize(self._conv(f"{head}.4", hidden), images)

    def _context(self, maps: Tensor) -> Tensor:
        parts = []
        if "ppm.features.0.1.weight" in self._weights:
            parts.append(maps)
            for place, bins in enumerate((1, 2, 3, 6)):
                pooled = self._conv(f"ppm.features.{place}.1", F.adaptive_avg_pool2d(maps, bins))
                parts.append(self._resize(F.relu(self._norm(f"ppm.features.{place}.2", pooled)), maps))
        else:
            for place, rate in enumerate((1, 6, 12, 18)):
                seen = self._conv(f"aspp.convs.{place}.0", maps, dilation=rate)
                parts.append(F.relu(self._norm(f"aspp.convs.{place}.1", seen)))
            whole = self._conv("aspp.convs.4.1", F.adaptive_avg_pool2d(maps, 1))
            parts.append(self._resize(F.relu(self._norm("aspp.convs.4.2", whole)), maps))
        return torch.cat(parts, 1)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def parallel(weights: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """As DataParallel names them, and as the released files keep them."""
    return OrderedDict((f"module.{key}", value) for key, value in weights.items())
