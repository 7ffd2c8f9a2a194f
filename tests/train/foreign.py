"""
Files of mmsegmentation, of transformers' UPerNet and of adversarially trained ones, written down from their description alone:
keys, shapes, and what the networks in them compute.

Nothing here knows the networks of ddcat_train.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.released import Layers, Shapes, batch_norm, stages

BINS = (1, 2, 3, 6)


def conv_module(key: str, inputs: int, outputs: int, kernel: int = 1, *, groups: int = 1, norm: str = "bn") -> Shapes:
    return {f"{key}.conv.weight": (outputs, inputs // groups, kernel, kernel), **batch_norm(f"{key}.{norm}", outputs)}


def separable(key: str, inputs: int, outputs: int) -> Shapes:
    return {
        **conv_module(f"{key}.depthwise_conv", inputs, inputs, 3, groups=inputs),
        **conv_module(f"{key}.pointwise_conv", inputs, outputs),
    }


def resnet(width: int, blocks: tuple[int, ...], *, bottleneck: bool, stem: str = "v1c") -> Shapes:
    if stem == "plain":
        shapes: Shapes = {"backbone.conv1.weight": (width, 3, 7, 7), **batch_norm("backbone.bn1", width)}
    else:
        half = width // 2
        shapes = {}
        for place, outputs, inputs in ((0, half, 3), (3, half, half), (6, width, half)):
            shapes |= {f"backbone.stem.{place}.weight": (outputs, inputs, 3, 3)}
            shapes |= batch_norm(f"backbone.stem.{place + 1}", outputs)
    for key, shape in stages(width, blocks, bottleneck=bottleneck, stem=width).items():
        behind = key.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1")  # averages
        shapes[f"backbone.{behind if stem == 'v1d' else key}"] = shape
    return shapes


def layer_norm(key: str, channels: int) -> Shapes:
    return {f"{key}.weight": (channels,), f"{key}.bias": (channels,)}


def convolution(key: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{key}.weight": (outputs, inputs, kernel, kernel), f"{key}.bias": (outputs,)}


def convnext(depths: tuple[int, ...], width: int, *, stem: str = "conv", names: str = "authors") -> Shapes:
    """The backbone of the robust ones (`authors`, a convolutional stem), or of mmpretrain."""
    depthwise, first, second = (
        ("dwconv", "pwconv1", "pwconv2") if names == "authors" else ("depthwise_conv", "pointwise_conv1", "pointwise_conv2")
    )
    down = "backbone.downsample_layers"
    if stem == "conv":
        shapes: Shapes = {
            **convolution(f"{down}.0.stem.0", 3, width // 2, 3), **layer_norm(f"{down}.0.stem.1", width // 2),
            **convolution(f"{down}.0.stem.3", width // 2, width, 3), **layer_norm(f"{down}.0.stem.4", width),
        }  # fmt: skip
    else:
        shapes = {**convolution(f"{down}.0.0", 3, width, 4), **layer_norm(f"{down}.0.1", width)}
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        if stage:
            shapes |= {
                **layer_norm(f"{down}.{stage}.0", channels // 2),
                **convolution(f"{down}.{stage}.1", channels // 2, channels, 2),
            }
        for block in range(depth):
            key = f"backbone.stages.{stage}.{block}"
            shapes |= {
                f"{key}.gamma": (channels,),
                f"{key}.{depthwise}.weight": (channels, 1, 7, 7), f"{key}.{depthwise}.bias": (channels,),
                **layer_norm(f"{key}.norm", channels),
                f"{key}.{first}.weight": (4 * channels, channels), f"{key}.{first}.bias": (4 * channels,),
                f"{key}.{second}.weight": (channels, 4 * channels), f"{key}.{second}.bias": (channels,),
            }  # fmt: skip
        shapes |= layer_norm(f"backbone.norm{stage}", channels)
    return shapes


def mix_transformer(width: int, depths: tuple[int, ...]) -> Shapes:
    """MixVisionTransformer: heads 1, 2, 5, 8; patches of 7, 3, 3, 3; keys and values 8, 4, 2, 1 times fewer each way."""
    shapes: Shapes = {}
    inputs = 3
    for stage, (heads, kernel, fewer, depth) in enumerate(zip((1, 2, 5, 8), (7, 3, 3, 3), (8, 4, 2, 1), depths, strict=True)):
        channels, top = width * heads, f"backbone.layers.{stage}"
        shapes |= {**convolution(f"{top}.0.projection", inputs, channels, kernel), **layer_norm(f"{top}.0.norm", channels)}
        for block in range(depth):
            key = f"{top}.1.{block}"
            shapes |= {
                **layer_norm(f"{key}.norm1", channels), **layer_norm(f"{key}.norm2", channels),
                f"{key}.attn.attn.in_proj_weight": (3 * channels, channels), f"{key}.attn.attn.in_proj_bias": (3 * channels,),
                f"{key}.attn.attn.out_proj.weight": (channels, channels), f"{key}.attn.attn.out_proj.bias": (channels,),
                **convolution(f"{key}.ffn.layers.0", channels, 4 * channels, 1),
                f"{key}.ffn.layers.1.weight": (4 * channels, 1, 3, 3), f"{key}.ffn.layers.1.bias": (4 * channels,),
                **convolution(f"{key}.ffn.layers.4", 4 * channels, channels, 1),
            }  # fmt: skip
            if fewer > 1:
                shapes |= {
                    **convolution(f"{key}.attn.sr", channels, channels, fewer),
                    **layer_norm(f"{key}.attn.norm", channels),
                }
        shapes |= layer_norm(f"{top}.2", channels)
        inputs = channels
    return shapes


def segformer_head(inputs: tuple[int, ...], width: int, classes: int) -> Shapes:
    shapes: Shapes = {}
    for place, channels in enumerate(inputs):
        shapes |= conv_module(f"decode_head.convs.{place}", channels, width)
    shapes |= conv_module("decode_head.fusion_conv", len(inputs) * width, width)
    return shapes | classifier("decode_head.conv_seg", width, classes)


def classifier(key: str, hidden: int, classes: int) -> Shapes:
    return {f"{key}.weight": (classes, hidden, 1, 1), f"{key}.bias": (classes,)}


def fcn(inputs: int, hidden: int, classes: int, *, norm: str = "bn", name: str = "conv_seg") -> Shapes:
    return {
        **conv_module("auxiliary_head.convs.0", inputs, hidden, 3, norm=norm),
        **classifier(f"auxiliary_head.{name}", hidden, classes),
    }


def psp_head(inputs: int, width: int, classes: int) -> Shapes:
    shapes: Shapes = {}
    for place in range(4):
        shapes |= conv_module(f"decode_head.psp_modules.{place}.1", inputs, width)
    shapes |= conv_module("decode_head.bottleneck", inputs + 4 * width, width, 3)
    return shapes | classifier("decode_head.conv_seg", width, classes)


def aspp_head(inputs: int, width: int, classes: int) -> Shapes:
    shapes = conv_module("decode_head.image_pool.1", inputs, width)
    for place, kernel in enumerate((1, 3, 3, 3)):
        shapes |= conv_module(f"decode_head.aspp_modules.{place}", inputs, width, kernel)
    shapes |= conv_module("decode_head.bottleneck", 5 * width, width, 3)
    return shapes | classifier("decode_head.conv_seg", width, classes)


def separable_aspp_head(inputs: int, finest: int, width: int, reduced: int, classes: int) -> Shapes:
    shapes = {
        **conv_module("decode_head.image_pool.1", inputs, width), **conv_module("decode_head.aspp_modules.0", inputs, width),
    }  # fmt: skip
    for place in (1, 2, 3):
        shapes |= separable(f"decode_head.aspp_modules.{place}", inputs, width)
    return {
        **shapes, **conv_module("decode_head.bottleneck", 5 * width, width, 3),
        **conv_module("decode_head.c1_bottleneck", finest, reduced),
        **separable("decode_head.sep_bottleneck.0", width + reduced, width),
        **separable("decode_head.sep_bottleneck.1", width, width),
        **classifier("decode_head.conv_seg", width, classes),
    }  # fmt: skip


def uper_head(inputs: tuple[int, ...], width: int, classes: int, *, norm: str = "bn", name: str = "conv_seg") -> Shapes:
    """As mmsegmentation names it; transformers and the robust ones say batch_norm and classifier."""
    shapes: Shapes = {}
    for place in range(4):
        shapes |= conv_module(f"decode_head.psp_modules.{place}.1", inputs[-1], width, norm=norm)
    shapes |= conv_module("decode_head.bottleneck", inputs[-1] + 4 * width, width, 3, norm=norm)
    for place, channels in enumerate(inputs[:-1]):
        shapes |= conv_module(f"decode_head.lateral_convs.{place}", channels, width, norm=norm)
        shapes |= conv_module(f"decode_head.fpn_convs.{place}", width, width, 3, norm=norm)
    shapes |= conv_module("decode_head.fpn_bottleneck", len(inputs) * width, width, 3, norm=norm)
    return shapes | classifier(f"decode_head.{name}", width, classes)


def robust(depths: tuple[int, ...], width: int, hidden: int, auxiliary: int, classes: int) -> Shapes:
    """UPerNet on ConvNeXt with a convolutional stem: T is (3, 3, 9, 3), S (3, 3, 27, 3), both of 96, 512 and 256."""
    channels = tuple(width * 2**stage for stage in range(4))
    return {
        **convnext(depths, width),
        **uper_head(channels, hidden, classes, norm="batch_norm", name="classifier"),
        **fcn(channels[2], auxiliary, classes, norm="batch_norm", name="classifier"),
    }


class Foreign(Layers):
    """What a file computes, from its keys; resizing without aligned corners."""

    corners = False

    def _module(self, key: str, maps: Tensor, dilation: int = 1) -> Tensor:
        norm = "bn" if f"{key}.bn.weight" in self._weights else "batch_norm"
        return F.relu(self._norm(f"{key}.{norm}", self._conv(f"{key}.conv", maps, dilation=dilation)))

    def _separable(self, key: str, maps: Tensor, dilation: int = 1) -> Tensor:
        return self._module(f"{key}.pointwise_conv", self._module(f"{key}.depthwise_conv", maps, dilation))

    def _layer_norm(self, key: str, maps: Tensor) -> Tensor:
        mean = maps.mean(1, keepdim=True)
        spread = (maps - mean).pow(2).mean(1, keepdim=True)
        weight, bias = (self._weights[f"{key}.{name}"][:, None, None] for name in ("weight", "bias"))
        return weight * (maps - mean) / torch.sqrt(spread + 1e-6) + bias

    def resnet(self, images: Tensor, *, stride: int) -> list[Tensor]:
        """Four stages; mmsegmentation contracts the first dilation of a stage."""
        if "backbone.conv1.weight" in self._weights:
            maps = F.relu(self._norm("backbone.bn1", self._conv("backbone.conv1", images, 2)))
        else:
            maps = images
            for place in (0, 3, 6):
                maps = self._conv(f"backbone.stem.{place}", maps, 2 if place == 0 else 1)
                maps = F.relu(self._norm(f"backbone.stem.{place + 1}", maps))
        maps = F.max_pool2d(maps, 3, 2, 1)
        forms = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2)), 32: ((1, 2, 2, 2), (1, 1, 1, 1))}
        strides, dilations = forms[stride]
        found = []
        for stage, (step, dilation) in enumerate(zip(strides, dilations, strict=True), 1):
            block = 0
            while f"backbone.layer{stage}.{block}.conv1.weight" in self._weights:
                first = dilation // 2 if dilation > 1 and block == 0 else dilation
                maps = self._block(f"backbone.layer{stage}.{block}", maps, step if block == 0 else 1, first)
                block += 1
            found.append(maps)
        return found

    def convnext(self, images: Tensor) -> list[Tensor]:
        """Four stages, each behind its norm."""
        maps, found, down = images, [], "backbone.downsample_layers"
        for stage in range(4):
            if stage:
                maps = self._conv(f"{down}.{stage}.1", self._layer_norm(f"{down}.{stage}.0", maps), 2, padding=0)
            elif f"{down}.0.stem.0.weight" in self._weights:
                for place in (0, 3):
                    maps = self._conv(f"{down}.0.stem.{place}", maps, 2)
                    maps = F.gelu(self._layer_norm(f"{down}.0.stem.{place + 1}", maps))
            else:
                maps = self._layer_norm(f"{down}.0.1", self._conv(f"{down}.0.0", maps, 4, padding=0))
            block = 0
            while f"backbone.stages.{stage}.{block}.gamma" in self._weights:
                maps = maps + self._residual(f"backbone.stages.{stage}.{block}", maps)
                block += 1
            found.append(self._layer_norm(f"backbone.norm{stage}", maps))
        return found

    def _residual(self, key: str, maps: Tensor) -> Tensor:
        authors = f"{key}.dwconv.weight" in self._weights
        names = ("dwconv", "pwconv1", "pwconv2") if authors else ("depthwise_conv", "pointwise_conv1", "pointwise_conv2")
        out = self._layer_norm(f"{key}.norm", self._conv(f"{key}.{names[0]}", maps))
        first, second = ([self._weights[f"{key}.{name}.{part}"] for part in ("weight", "bias")] for name in names[1:])
        out = F.linear(F.gelu(F.linear(out.permute(0, 2, 3, 1), *first)), *second)
        return (self._weights[f"{key}.gamma"] * out).permute(0, 3, 1, 2)

    def mix_transformer(self, images: Tensor) -> list[Tensor]:
        """Four stages, with torch's own multi-head attention."""
        maps, found = images, []
        for stage, (heads, stride, fewer) in enumerate(zip((1, 2, 5, 8), (4, 2, 2, 2), (8, 4, 2, 1), strict=True)):
            top = f"backbone.layers.{stage}"
            maps = self._layer_norm(f"{top}.0.norm", self._conv(f"{top}.0.projection", maps, stride))
            block = 0
            while f"{top}.1.{block}.norm1.weight" in self._weights:
                key = f"{top}.1.{block}"
                maps = maps + self._attention(key, self._layer_norm(f"{key}.norm1", maps), heads, fewer)
                hidden = self._conv(f"{key}.ffn.layers.0", self._layer_norm(f"{key}.norm2", maps))
                maps = maps + self._conv(f"{key}.ffn.layers.4", F.gelu(self._conv(f"{key}.ffn.layers.1", hidden)))
                block += 1
            maps = self._layer_norm(f"{top}.2", maps)
            found.append(maps)
        return found

    def _attention(self, key: str, maps: Tensor, heads: int, fewer: int) -> Tensor:
        channels = maps.shape[1]
        layer = torch.nn.MultiheadAttention(channels, heads, batch_first=True).eval()
        layer.load_state_dict({
            name: self._weights[f"{key}.attn.attn.{name}"]
            for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        })  # fmt: skip
        seen = maps
        if fewer > 1:
            seen = self._layer_norm(f"{key}.attn.norm", self._conv(f"{key}.attn.sr", maps, fewer, padding=0))
        tokens, others = (part.flatten(2).transpose(1, 2) for part in (maps, seen))
        answer, _ = layer(tokens, others, others)
        return answer.transpose(1, 2).reshape(maps.shape)

    def _segformer(self, stages: list[Tensor]) -> Tensor:
        parts = [self._module(f"decode_head.convs.{place}", maps) for place, maps in enumerate(stages)]
        return self._module("decode_head.fusion_conv", torch.cat([self._resize(part, parts[0]) for part in parts], 1))

    def segment(self, images: Tensor, kind: str, *, stride: int = 32) -> Tensor:
        """Logits of the decode head, of the images' size."""
        normalised = self._normalised(images)
        if "decode_head.classifier.weight" in self._weights and "backbone.norm0.weight" in self._weights:
            normalised = images  # the robust ones are trained and evaluated on images in [0, 1]
        if "backbone.norm0.weight" in self._weights:
            stages = self.convnext(normalised)
        elif "backbone.layers.0.0.projection.weight" in self._weights:
            stages = self.mix_transformer(normalised)
        else:
            stages = self.resnet(normalised, stride=stride)
        hidden = getattr(self, f"_{kind}")(stages)
        name = "conv_seg" if "decode_head.conv_seg.weight" in self._weights else "classifier"
        return self._resize(self._conv(f"decode_head.{name}", hidden), images)

    def auxiliary(self, images: Tensor, *, stride: int) -> Tensor:
        """Logits of the auxiliary head on a ResNet."""
        normalised = self._normalised(images)
        hidden = self._module("auxiliary_head.convs.0", self.resnet(normalised, stride=stride)[2])
        return self._resize(self._conv("auxiliary_head.conv_seg", hidden), images)

    def _pooled(self, maps: Tensor) -> Tensor:
        parts = [maps]
        for place, bins in enumerate(BINS):
            parts.append(
                self._resize(self._module(f"decode_head.psp_modules.{place}.1", F.adaptive_avg_pool2d(maps, bins)), maps)
            )
        return self._module("decode_head.bottleneck", torch.cat(parts, 1))

    def _psp(self, stages: list[Tensor]) -> Tensor:
        return self._pooled(stages[-1])

    def _aspp(self, stages: list[Tensor], rates: tuple[int, ...] = (1, 12, 24, 36)) -> Tensor:
        maps = stages[-1]
        parts = [self._resize(self._module("decode_head.image_pool.1", F.adaptive_avg_pool2d(maps, 1)), maps)]
        for place, rate in enumerate(rates):
            key = f"decode_head.aspp_modules.{place}"
            layer = self._separable if f"{key}.depthwise_conv.conv.weight" in self._weights else self._module
            parts.append(layer(key, maps, rate))
        return self._module("decode_head.bottleneck", torch.cat(parts, 1))

    def _aspp_16(self, stages: list[Tensor]) -> Tensor:
        return self._aspp(stages, (1, 6, 12, 18))

    def _separable_aspp(self, stages: list[Tensor]) -> Tensor:
        fine = self._module("decode_head.c1_bottleneck", stages[0])
        maps = torch.cat([self._resize(self._aspp(stages), fine), fine], 1)
        for place in (0, 1):
            maps = self._separable(f"decode_head.sep_bottleneck.{place}", maps)
        return maps

    def _uper(self, stages: list[Tensor]) -> Tensor:
        levels = [self._module(f"decode_head.lateral_convs.{place}", maps) for place, maps in enumerate(stages[:-1])]
        levels.append(self._pooled(stages[-1]))
        for place in (3, 2, 1):
            levels[place - 1] = levels[place - 1] + self._resize(levels[place], levels[place - 1])
        outs = [self._module(f"decode_head.fpn_convs.{place}", levels[place]) for place in range(3)] + [levels[3]]
        return self._module(
            "decode_head.fpn_bottleneck", torch.cat([outs[0], *(self._resize(o, outs[0]) for o in outs[1:])], 1)
        )
