"""The choices that commands, manifests and code share. Apart, so that a command's --help does not wait for pydantic."""

from typing import Literal

__all__ = ["CalibrationKind", "Device", "EngineName", "Hardware", "Precision"]

Device = Literal["auto", "cpu", "cuda"]  # of PyTorch
EngineName = Literal["ort", "openvino", "trt", "trt-rtx"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
CalibrationKind = Literal["clean", "mixed"]  # of the images that int8 is calibrated on
Hardware = Literal["this", "same-compute-capability", "ampere-plus"]  # GPUs that a plan of TensorRT runs on
