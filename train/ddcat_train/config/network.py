"""The section of a configuration that says what the network is."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from ddcat.bands import MOST_BANDS
from ddcat.extras import install
from ddcat_train.choices import BACKBONE_GROUP, SEGMENTER_GROUP, BackboneName, ContextName, Stem, WholeName
from ddcat_train.config.values import FilePath, Section
from ddcat_train.whole_settings import NAMED_BY, resolved_settings

__all__ = ["ModelConfig"]


def _known(name: str, ours: Sequence[str], group: str, what: str) -> str:
    if name in ours:  # to ask what is installed takes long
        return name
    known = (*ours, *sorted(entry_points(group=group).names))
    if name not in known:
        raise ValueError(f"there is no such {what}: use {', '.join(known)}, or an entry point {group} of an installed package")
    return name


def _known_backbone(name: str) -> str:
    return _known(name, get_args(BackboneName), BACKBONE_GROUP, "backbone")


def _known_whole(name: str) -> str:
    return _known(name, get_args(WholeName), SEGMENTER_GROUP, "library of whole models")


def _hf_settings(source: Any, info: ValidationInfo) -> Any:
    if not isinstance(source, str | Path | dict):
        return source
    if info.mode == "json" and not isinstance(source, dict):  # in a checkpoint, which comes from anybody: read no file for it
        raise ValueError("expected the settings themselves, not the path of a file")
    try:
        from ddcat_train.huggingface_settings import hf_settings  # noqa: PLC0415 -- heavy, and not everybody has it
    except ImportError as cause:
        raise ValueError(f"a library is not installed ({cause}): {install('train,hf')}") from cause
    return hf_settings(source)


Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=MOST_BANDS)]
_COMPOSED = (  # what a whole model replaces
    "backbone", "context", "context_width", "align_corners", "width", "stem", "drop_path", "output_stride", "dropout", "init",
    "normalise", "hf",
)  # fmt: skip
_OF_WHOLE = ("settings", "cut", "multiple", "channels", "weights")


class ModelConfig(Section):
    """The network: a backbone, a context and heads; or a whole model of another library."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] | None = Field(
        description="a backbone of ddcat, or of an installed package; None: a whole model"
    )
    context: ContextName = Field(
        "pyramid",
        description="pyramid: PSPNet's pooling; aspp: DeepLabv3's, as in semseg; of several stages: upernet, segformer (the "
        "decoder alone), deeplabv3plus; deeplabv3: as in mmsegmentation",
    )
    context_width: int | None = Field(
        None,
        ge=4,
        le=2048,
        description="channels of each part of the context; None: 1/4 (pyramid) or 1/8 (aspp) of the backbone's, 256 "
        "(segformer) or 512 (others)",
    )
    align_corners: bool = Field(True, description="how maps and logits are resized: with aligned corners, as in semseg, or not")
    width: int = Field(64, ge=4, le=1024, description="channels of a ResNet's first stage")
    stem: Stem = Field(
        "deep",
        description="stem of a ResNet or ConvNeXt: deep, of 3x3 convolutions; plain, of torchvision's weights or of the "
        "ConvNeXt paper; v1c, v1d: ResNets of mmsegmentation",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="rate at which the last block of a ConvNeXt or mit is passed over in training"
    )
    output_stride: Literal[8, 16, 32] = Field(8, description="stride of the backbone's maps, in pixels of the image")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the heads' channels")
    init: Literal["torch", "kaiming"] = Field(
        "torch", description="random initial weights of the backbone: torch's, or the released code's; not for hf"
    )
    normalise: Literal["imagenet", "none"] = Field(
        "imagenet",
        description="how images in [0, 1] are normalised: by ImageNet's mean and deviation, or by those of a package's "
        "backbone; none: not at all, as for the robust networks of Croce, Singh and Hein",
    )
    hf: Annotated[dict[str, Any], BeforeValidator(_hf_settings)] | None = Field(
        None, description="settings of a backbone of Hugging Face transformers, or its config.json; for backbone hf"
    )
    whole: Annotated[str, AfterValidator(_known_whole)] | None = Field(
        None,
        description="library of a whole model, which takes the place of backbone, context and heads; segmenter: a ViT with a "
        "mask transformer, ours",
    )
    settings: dict[str, Any] | None = Field(
        None, description="settings of the whole model, by the names of its library; or the folder of a downloaded one"
    )
    cut: str | None = Field(
        None, description="paths of its last layers, joined by +, which every branch has of its own; None: found"
    )
    multiple: int | None = Field(
        None, ge=1, le=4096, description="pixels of which its images must be a multiple; they are padded; None: known or tried"
    )
    mean: Channels | None = Field(
        None,
        description="mean of each channel of the images in [0, 1], as many as data.bands has; None: that of the folder of a "
        "whole model, or by normalise",
    )
    std: Channels | None = Field(None, description="their standard deviation")
    channels: Literal["RGB", "BGR"] | None = Field(None, description="order of its channels")
    weights: FilePath | None = Field(
        None, description="folder, or file, of weights that the whole model begins with; None: random"
    )
    start_from: FilePath | None = Field(
        None, description="checkpoint or run of the same network: all its weights are loaded, heads included"
    )
    pretrained: FilePath | None = Field(
        None, description="safetensors file, checkpoint or run: the weights of its backbone are loaded; None: random"
    )

    @property
    def bands(self) -> int:
        """The number of bands of its images."""
        return 3 if self.mean is None else len(self.mean)

    @property
    def architecture(self) -> str:
        """Backbone and context, or the name of a whole model."""
        if self.whole is not None:
            named = self.settings or {}
            inner = named.get("encoder_name") or (named.get("backbone_config") or {}).get("model_type")
            return " + ".join(filter(None, (str(named.get(NAMED_BY.get(self.whole, ""), self.whole)), inner)))
        return f"{self.hf['model_type'] if self.hf else self.backbone} + {self.context}"

    @model_validator(mode="before")
    @classmethod
    def _whole_model(cls, values: Any, info: ValidationInfo) -> Any:
        """Let a whole model take the place of what a preset says of a backbone, and resolve its settings."""
        if not isinstance(values, dict) or values.get("whole") is None:
            return values
        kept: dict[str, Any] = {key: value for key, value in values.items() if key not in _COMPOSED} | {"backbone": None}
        source = kept.get("settings") or kept.get("weights")
        if not isinstance(source, str | Path | dict):
            return kept
        if not isinstance(source, dict) and info.mode == "json":  # in a checkpoint, from anybody: read no file for it
            raise ValueError("model.settings: expected the settings themselves, not the path of a file")
        try:
            found = resolved_settings(kept["whole"], source)
        except ImportError as cause:
            raise ValueError(f"a library is not installed ({cause}): {install('train,hf')}") from cause
        return kept | {key: value for key, value in found.items() if key == "settings" or kept.get(key) is None}

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if self.whole is None:
            given = [key for key in _OF_WHOLE if getattr(self, key) is not None]
            if given:
                raise ValueError(f"model.{given[0]} is for a whole model: name its library by model.whole")
        elif self.pretrained is not None:
            raise ValueError("model.pretrained is for a backbone: a whole model has model.weights")
        elif self.start_from is not None and self.weights is not None:
            raise ValueError("start_from has all weights: use it or weights, not both")
        elif self.settings is None and self.whole in NAMED_BY:
            raise ValueError(f"model.whole {self.whole} needs model.settings, or model.weights with a folder that has them")
        if (self.mean is None) != (self.std is None):
            raise ValueError("model.mean and model.std belong together: name both")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(f"model.mean has {len(self.mean)} numbers and model.std {len(self.std)}: expected one a band")
            if min(self.std) <= 0:
                raise ValueError(f"model.std: expected numbers above 0, got {min(self.std):g}")
            if self.whole is None and self.normalise == "none":
                raise ValueError("model.normalise none and model.mean exclude each other: leave one out")
        return self

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.backbone is None:
            if self.whole is None:
                raise ValueError("model.backbone is missing: name one, or a library of whole models by model.whole")
            return self
        if self.start_from is not None and self.pretrained is not None:
            raise ValueError("start_from has the backbone's weights, too: use it or pretrained, not both")
        if (self.backbone == "hf") != (self.hf is not None):
            raise ValueError(
                "model.backbone hf and model.hf, its settings or the path of its config.json, belong together: name both"
            )
        if self.hf is not None and self.init != "torch":
            raise ValueError("init is for convolutional networks of ours: what transformers builds has its own")
        if self.backbone not in get_args(BackboneName):
            return self  # a package checks its own backbone
        self._check_form(self.backbone)
        return self

    def _check_form(self, backbone: str) -> None:
        resnet, convnext = backbone.startswith("resnet"), backbone.startswith("convnext")
        if not resnet and self.width != 64:
            raise ValueError(f"width is for ResNets: {backbone} has one width")
        if not resnet and not (convnext and self.stem == "plain") and self.stem != "deep":
            raise ValueError(f"stem {self.stem} is for ResNets: {backbone} has one of its own")
        strided = convnext or backbone.startswith("mit_")
        if self.drop_path and not strided:
            raise ValueError(f"drop_path is for ConvNeXt and mit: {backbone} has no blocks that it could skip")
        if strided and self.output_stride != 32:
            raise ValueError(f"output_stride {self.output_stride} is not for {backbone}: use 32")
        if convnext and self.align_corners:
            raise ValueError("align_corners true is not for ConvNeXt, whose last maps may be of 1 x 1: use false")
