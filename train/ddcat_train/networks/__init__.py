"""Networks: what a `Segmenter` is, and those that are composed of a backbone, a context and heads."""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from ddcat_train.choices import BACKBONE_GROUP, SEVERAL_STAGES, ContextName, Head
from ddcat_train.config import ModelConfig
from ddcat_train.errors import ConfigError
from ddcat_train.networks.backbone import Backbone, Stages, initialise, take_bands
from ddcat_train.networks.composed import ComposedSegmenter
from ddcat_train.networks.contexts import ASPP, ContextModule, PyramidPooling
from ddcat_train.networks.convnext import CONVNEXTS, ConvNeXt
from ddcat_train.networks.efficientnet_lite import LITES, efficientnet_lite
from ddcat_train.networks.fusion import AllMLP, DeepLabV3Plus, UPerNet
from ddcat_train.networks.mit import MITS, MixTransformer
from ddcat_train.networks.mobilenet import MobileNetV2
from ddcat_train.networks.normalise import UNCHANGED, Normalise
from ddcat_train.networks.pretrained import load_backbone
from ddcat_train.networks.resnet import RESNETS, ResNet
from ddcat_train.networks.segmenter import Features, Segmenter
from ddcat_train.networks.whole import build_whole

__all__ = [
    "BACKBONES",
    "CONTEXTS",
    "Backbone",
    "ComposedSegmenter",
    "Features",
    "Segmenter",
    "Stages",
    "build_backbone",
    "build_segmenter",
    "build_whole",
    "load_backbone",
]


def _hugging_face(model: ModelConfig) -> Backbone:
    from ddcat_train.networks.huggingface import HuggingFace  # noqa: PLC0415 -- heavy, and not everybody has it

    assert model.hf is not None  # the configuration says so
    return HuggingFace(model.hf, model.output_stride, all_stages=model.context in SEVERAL_STAGES)


BACKBONES: dict[str, Callable[[ModelConfig], Backbone]] = {
    **{
        name: lambda model: ResNet(*RESNETS[str(model.backbone)], model.width, model.stem, model.output_stride)
        for name in RESNETS
    },
    "mobilenet_v2": lambda model: MobileNetV2(model.output_stride),
    **{name: lambda model: efficientnet_lite(str(model.backbone), model.output_stride) for name in LITES},
    **{name: lambda model: ConvNeXt(*CONVNEXTS[str(model.backbone)], model.stem, model.drop_path) for name in CONVNEXTS},
    **{name: lambda model: MixTransformer(*MITS[str(model.backbone)], model.drop_path) for name in MITS},
    "hf": _hugging_face,
}

CONTEXTS: dict[ContextName, Callable[[Backbone, ModelConfig], ContextModule]] = {
    "pyramid": lambda body, model: PyramidPooling(body.channels, width=model.context_width, align_corners=model.align_corners),
    "aspp": lambda body, model: ASPP(body.channels, width=model.context_width),
    "upernet": lambda body, model: UPerNet(_stages(body), width=model.context_width or 512, align_corners=model.align_corners),
    "segformer": lambda body, model: AllMLP(_stages(body), width=model.context_width or 256, align_corners=model.align_corners),
    "deeplabv3": lambda body, model: ASPP(body.channels, width=model.context_width or 512, rates=_rates(body), head_kernel=3),
    "deeplabv3plus": lambda body, model: DeepLabV3Plus(
        _stages(body), width=model.context_width or 512, rates=_rates(body), align_corners=model.align_corners
    ),
}


def _stages(body: Backbone) -> tuple[int, ...]:
    return (*body.earlier_channels, body.intermediate_channels, body.channels)


def _rates(body: Backbone) -> tuple[int, int, int]:
    return (96 // body.stride, 192 // body.stride, 288 // body.stride)  # in pixels of the image the same for every stride


def build_segmenter(model: ModelConfig, *, classes: int, heads: Sequence[Head] = ("main",)) -> Segmenter:
    """
    Compose a network with random weights.

    Raises
    ------
    ConfigError
        Where an installed package was to bring the backbone, and does not.
    """
    if model.whole is not None:
        return build_whole(model, classes=classes, heads=heads)
    body = build_backbone(model)
    if model.bands != 3:
        take_bands(body, model.bands)
    if model.init == "kaiming":
        initialise(body)
    return ComposedSegmenter(
        body,
        CONTEXTS[model.context](body, model),
        classes=classes,
        heads=heads,
        dropout=model.dropout,
        align_corners=model.align_corners,
        normalisation=_normalisation(body, model),
    )


def _normalisation(body: Backbone, model: ModelConfig) -> Normalise:
    if model.mean is not None and model.std is not None:
        return Normalise(model.mean, model.std)
    return Normalise(body.mean, body.std) if model.normalise == "imagenet" else Normalise(*UNCHANGED)


def build_backbone(model: ModelConfig) -> Backbone:
    """
    Build a backbone of ours, or one of an installed package, with random weights.

    Raises
    ------
    ConfigError
        Where the package cannot be imported, or what it gives is no backbone.
    """
    assert model.backbone is not None  # else the configuration has a whole model
    if model.backbone in BACKBONES:
        return BACKBONES[model.backbone](model)
    entries = tuple(entry_points(group=BACKBONE_GROUP, name=model.backbone))  # one or more: the configuration asked for them
    if len(entries) > 1:
        raise ConfigError(
            f"several packages bring the backbone {model.backbone}: {', '.join(entry.value for entry in entries)}"
        )
    (entry,) = entries
    try:
        build = entry.load()
    except (ImportError, AttributeError) as cause:
        raise ConfigError(f"the backbone {model.backbone} is not at {entry.value}, as its package says: {cause}") from cause
    body = build(model)
    if not isinstance(body, Backbone):
        raise ConfigError(f"{entry.value} gives no Backbone but a {type(body).__name__}: docs/backbones.md says what one is")
    absent = [name for name in ("intermediate_channels", "channels", "stride") if not hasattr(body, name)]
    if absent:
        raise ConfigError(f"the {type(body).__name__} of {entry.value} does not say its {' and '.join(absent)}")
    return body
