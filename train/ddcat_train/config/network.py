"""The section of a configuration that says what the network is."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from ddcat.extras import install
from ddcat_train.choices import BACKBONE_GROUP, BackboneName, ContextName, Stem
from ddcat_train.config.values import FilePath, Section

__all__ = ["ModelConfig"]


def _known_backbone(name: str) -> str:
    ours, brought = get_args(BackboneName), sorted(entry_points(group=BACKBONE_GROUP).names)
    if name not in (*ours, *brought):
        raise ValueError(
            f"there is no such backbone: use {', '.join((*ours, *brought))}, or an entry point {BACKBONE_GROUP} of an "
            "installed package"
        )
    return name


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


class ModelConfig(Section):
    """The network."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] = Field(
        description="a backbone of ddcat, or of an installed package"
    )
    context: ContextName = Field("pyramid", description="pyramid: PSPNet's pooling; aspp: DeepLabv3's")
    width: int = Field(64, ge=4, le=1024, description="channels of a ResNet's first stage")
    stem: Stem = Field("deep", description="stem of a ResNet; plain: that of torchvision's weights")
    output_stride: Literal[8, 16, 32] = Field(8, description="stride of the backbone's maps, in pixels of the image")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the heads' channels")
    init: Literal["torch", "kaiming"] = Field(
        "torch", description="random initial weights of the backbone: torch's, or the released code's; not for hf"
    )
    hf: Annotated[dict[str, Any], BeforeValidator(_hf_settings)] | None = Field(
        None, description="settings of a backbone of Hugging Face transformers, or its config.json; for backbone hf"
    )
    start_from: FilePath | None = Field(
        None, description="checkpoint or run of the same network: all its weights are loaded, heads included"
    )
    pretrained: FilePath | None = Field(
        None, description="safetensors file, checkpoint or run: the weights of its backbone are loaded; None: random"
    )

    @property
    def architecture(self) -> str:
        """Backbone and context."""
        return f"{self.hf['model_type'] if self.hf else self.backbone} + {self.context}"

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.start_from is not None and self.pretrained is not None:
            raise ValueError("start_from has the backbone's weights, too: use it or pretrained, not both")
        if (self.backbone == "hf") != (self.hf is not None):
            raise ValueError(
                "model.backbone hf and model.hf, its settings or the path of its config.json, are for each other: name both"
            )
        if self.hf is not None and self.init != "torch":
            raise ValueError("init is for convolutional networks of ours: what transformers builds has its own")
        if self.backbone not in get_args(BackboneName):
            return self  # a package checks its own backbone
        resnet = self.backbone.startswith("resnet")
        if not resnet and self.width != 64:
            raise ValueError(f"width is for ResNets: {self.backbone} has one width")
        if not resnet and self.stem != "deep":
            raise ValueError(f"stem {self.stem} is for ResNets: {self.backbone} has one of its own")
        if resnet and self.output_stride != 8:
            raise ValueError("output_stride 16 is for mobilenet_v2, efficientnet_lite and hf: the ResNets have 8")
        return self
