"""Tiny models of the families that people have, as a configuration names them; their weights are random."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["MODELS", "TinyModel"]

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_CONVNEXT = {
    "model_type": "convnext", "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "out_features": _STAGES,
}  # fmt: skip
_SWIN = {
    "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4,
    "image_size": 64, "out_features": _STAGES,
}  # fmt: skip
_UPERNET = {"model_type": "upernet", "hidden_size": 32, "auxiliary_in_channels": 32, "auxiliary_channels": 16}
_VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_QUERIES = {"num_queries": 12}


class TinyModel(NamedTuple):
    """
    A model of a library.

    Attributes
    ----------
    whole : str
        The library: `model.whole`.
    settings : mapping
        `model.settings`.
    fixed : bool
        It exports for one size of images alone.
    """

    whole: str
    settings: Mapping[str, Any]
    fixed: bool = False


MODELS: Mapping[str, TinyModel] = {
    "SegFormer": TinyModel(
        "hf",
        {
            "model_type": "segformer", "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8], "decoder_hidden_size": 32,
        },
    ),
    "UPerNet, ConvNeXt": TinyModel("hf", {**_UPERNET, "backbone_config": _CONVNEXT}),
    "UPerNet, Swin": TinyModel("hf", {**_UPERNET, "backbone_config": _SWIN}, fixed=True),
    "DPT": TinyModel(
        "hf",
        {
            "model_type": "dpt", **_VIT, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16, "is_hybrid": False,
        },
        fixed=True,
    ),
    "BEiT": TinyModel(
        "hf",
        {
            "model_type": "beit", **_VIT, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True,
            "auxiliary_channels": 16,
        },
        fixed=True,
    ),
    "MobileViT": TinyModel(
        "hf",
        {
            "model_type": "mobilevit", "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
            "aspp_out_channels": 16, "atrous_rates": [2, 4, 6], "output_stride": 16,
        },
        fixed=True,
    ),
    "MobileNetV2 + DeepLabv3+": TinyModel(
        "hf", {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16}, fixed=True
    ),
    "Mask2Former, Swin": TinyModel(
        "hf",
        {
            "model_type": "mask2former", "backbone_config": _SWIN, "feature_size": 32, "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
            "dim_feedforward": 32, **_QUERIES,
        },
        fixed=True,
    ),
    "EoMT": TinyModel(
        "hf",
        {
            "model_type": "eomt", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 16, "num_blocks": 1, "num_upscale_blocks": 2, **_QUERIES,
        },
        fixed=True,
    ),
    "Segmenter, ViT": TinyModel("segmenter", {"image_size": 64, "width": 64, "depth": 2, "decoder_depth": 1}),
    "smp DeepLabV3Plus": TinyModel("smp", {"arch": "DeepLabV3Plus", "encoder_name": "resnet18"}),
    "smp Unet": TinyModel("smp", {"arch": "Unet", "encoder_name": "resnet18", "decoder_channels": [64, 32, 16, 16, 8]}),
    "smp FPN": TinyModel(
        "smp",
        {"arch": "FPN", "encoder_name": "resnet18", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    ),
    "smp Segformer": TinyModel(
        "smp", {"arch": "Segformer", "encoder_name": "mit_b0", "decoder_segmentation_channels": 32}
    ),
    "torchvision deeplabv3": TinyModel("torchvision", {"name": "deeplabv3_mobilenet_v3_large"}),
    "torchvision lraspp": TinyModel("torchvision", {"name": "lraspp_mobilenet_v3_large"}),
}  # fmt: skip
