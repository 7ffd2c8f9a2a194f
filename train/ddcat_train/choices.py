"""The names that configuration and code share. Apart from both, so that a command's --help does not wait for torch."""

from typing import Literal

__all__ = [
    "BACKBONE_GROUP",
    "SEGMENTER_GROUP",
    "SEVERAL_STAGES",
    "AugmentationName",
    "BackboneName",
    "ContextName",
    "CorruptionName",
    "DatasetName",
    "Head",
    "MaskSource",
    "MethodName",
    "NormName",
    "OptimiserName",
    "Split",
    "Start",
    "Stem",
    "StepSize",
    "UpdateRule",
    "WeightName",
    "WholeName",
]

BackboneName = Literal[  # ours to build
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2",
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "efficientnet_lite3", "efficientnet_lite4",
    "convnext_tiny", "convnext_small", "convnext_base", "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5", "hf",
]  # fmt: skip
WholeName = Literal["hf", "smp", "torchvision", "segmenter"]  # libraries of whole segmentation models, and one of ours
SEGMENTER_GROUP = "ddcat.segmenters"  # of entry points, by which an installed package brings others
BACKBONE_GROUP = "ddcat.backbones"  # of entry points, by which an installed package brings others
# Of a ResNet: three 3x3 convolutions as in semseg, torchvision's one of 7x7, mmsegmentation's ResNetV1c and ResNetV1d. Of a
# ConvNeXt: two 3x3 convolutions, or the original one of 4x4.
Stem = Literal["deep", "plain", "v1c", "v1d"]
ContextName = Literal["pyramid", "aspp", "upernet", "segformer", "deeplabv3", "deeplabv3plus"]
SEVERAL_STAGES: tuple[ContextName, ...] = ("upernet", "segformer", "deeplabv3plus")  # the others use the last maps
Head = Literal["main", "auxiliary", "mask", "deep"]  # f_n, f_a, f_m of the paper; semseg's deep supervision
MethodName = Literal["undefended", "sat", "ddcat", "ddcat-m", "ddcat-n", "pgd-at", "segpgd-at", "trades", "gaussian"]
OptimiserName = Literal["sgd", "adamw"]
UpdateRule = Literal["joint", "two-step"]  # one update of all losses, or lines 8 and 9 of Alg. 3
MaskSource = Literal["forward", "algorithm-2"]  # of p: the train-mode forward, or the maps of Alg. 2
Split = Literal["rank", "global"]  # which images stay clean: the first of every process's share, or of the whole batch
DatasetName = Literal["scenes", "voc", "cityscapes", "camvid", "folder"]
AugmentationName = Literal["paper", "plain"]
CorruptionName = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost",
    "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise", "gaussian_blur",
    "spatter", "saturate", "jpeg", "webp", "chroma_subsampling", "decoder", "resize_kernel", "gamma_dark", "gamma_bright",
    "underexposed", "overexposed", "white_balance_warm", "white_balance_cold", "bit_depth",
]  # fmt: skip
Start = Literal["clean", "random", "lower"]  # of an attack: at x, uniformly in the ball, at x - epsilon
NormName = Literal["linf", "l2"]  # of a perturbation, over all values of an image
StepSize = float | Literal["eps/n"]
WeightName = Literal["PGD", "SegPGD", "CosPGD", "TsallisPGD", "SEA-JS", "SEA-MCE", "SEA-MCE-Bal"]  # of pixels under attack
