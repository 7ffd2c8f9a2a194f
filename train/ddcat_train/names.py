"""The names that configuration and code share. Apart from both, so that a command's --help does not wait for torch."""

from typing import Literal

__all__ = ["AugmentationName", "BackboneName", "ContextName", "DatasetName", "Head", "MethodName", "Start", "StepSize"]

BackboneName = Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"]
ContextName = Literal["pyramid", "aspp"]
Head = Literal["main", "auxiliary", "mask", "deep"]  # f_n, f_a, f_m of the paper; semseg's deep supervision
MethodName = Literal["clean", "sat", "ddcat"]
DatasetName = Literal["scenes", "voc", "cityscapes", "camvid", "folder"]
AugmentationName = Literal["paper", "plain"]
Start = Literal["clean", "random", "lower"]  # of an attack: at x, uniformly in the ball, at x - epsilon
StepSize = float | Literal["eps/n"]
