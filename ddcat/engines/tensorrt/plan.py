"""The machines that a TensorRT plan runs on, and the images that it takes. Nothing here needs TensorRT or a GPU."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from ddcat.choices import Precision
from ddcat.engines.errors import EngineError
from ddcat.manifest import Device, DeviceKinds, DimRange, InputShapes

__all__ = [
    "Profile",
    "check_in_effect",
    "check_kind_runs_here",
    "check_runs_here",
    "profile_for",
    "profiles_of",
    "version_of",
]

Shape = tuple[int, int, int, int]

_REBUILD = "build it for this machine: ddcat export BUNDLE --engine trt"
_TYPES = (  # in the words of the engine inspector, to be tried in this order; others are not computed in
    ("bf16", re.compile(r"bfloat16|bf16", re.IGNORECASE)),
    ("fp16", re.compile(r"half|fp16|float16", re.IGNORECASE)),
    ("int8", re.compile(r"(?<!u)int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)


class Profile(NamedTuple):
    """Shapes (N, H, W, C) that kernels are chosen for: from the smallest to the largest, fastest at the best."""

    least: Shape
    best: Shape
    most: Shape


def version_of(text: str) -> tuple[int, int]:
    """Return the major and minor version of "10.13.2.6" or "tensorrt 10.13.2.6"."""
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None:
        raise EngineError(f"{text!r} is not a version of TensorRT: use one such as 10.13.2.6")
    return int(match[1]), int(match[2])


def profiles_of(shapes: InputShapes, channels: int = 3) -> tuple[Profile, ...]:
    """
    Return one profile for each listed size, or one for all sizes.

    Kernels are chosen for the smallest batch, which answers a lone request, and for the largest images of a range.

    Raises
    ------
    EngineError
        Where a batch, height or width has no upper end.
    """
    batch = shapes.batch
    for axis, sizes in (("batch", batch), ("height", shapes.height), ("width", shapes.width)):
        if sizes.maximum is None:
            raise EngineError(
                f"a plan has memory for the largest images, but this {axis} has no upper end: state the largest, or sizes"
            )
    if shapes.sizes is not None:
        return tuple(_profile(batch, (side, side), (other, other), channels) for side, other in shapes.sizes)
    return (_profile(batch, _ends(shapes.height), _ends(shapes.width), channels),)


def profile_for(profiles: Collection[Profile], shape: tuple[int, ...]) -> int:
    """
    Find the first profile that takes a shape.

    Raises
    ------
    EngineError
        Where no profile takes it.
    """
    for index, profile in enumerate(profiles):
        if len(shape) == len(profile.least) and all(
            low <= size <= high for low, size, high in zip(profile.least, shape, profile.most, strict=True)
        ):
            return index
    raise EngineError(f"the plan was not built for images of shape {shape}")


def check_runs_here(built_for: Device, here: Device, *, version_compatible: bool, hardware: str) -> None:
    """
    Refuse a plan that does not run on this machine.

    A plan runs on the model of GPU and with the version of TensorRT that it was built with, and with the driver of then or a
    later one. Options of its build widen that: to later minor versions, to the compute capability, or to Ampere and later.

    Parameters
    ----------
    built_for, here : Device
        The device of the manifest, and this machine's.
    version_compatible : bool
    hardware : str
        "this", "same-compute-capability" or "ampere-plus": the GPUs that the plan was built for.

    Raises
    ------
    EngineError
        With the difference, and the command that rebuilds the plan.
    """
    for what, theirs, ours, fits in (
        ("GPU", f"{built_for.name} ({built_for.compute_capability})", f"{here.name} ({here.compute_capability})",
         _gpu_fits(built_for, here, hardware)),
        ("version", built_for.runtime, here.runtime, _version_fits(built_for.runtime, here.runtime, version_compatible)),
        ("driver", built_for.driver, here.driver, version_of(here.driver) >= version_of(built_for.driver)),
    ):  # fmt: skip
        if not fits:
            raise EngineError(f"the plan was built for another {what}, {theirs}, and here is {ours}: {_REBUILD}")


def check_kind_runs_here(kinds: DeviceKinds, capability: str, runtime: str) -> None:
    """
    Refuse a plan of TensorRT for RTX that does not run on this machine.

    Parameters
    ----------
    kinds : DeviceKinds
        Of the manifest.
    capability, runtime : str
        This machine's.

    Raises
    ------
    EngineError
        With the difference, and the command that rebuilds the plan.
    """
    if capability not in kinds.compute_capabilities:
        theirs = ", ".join(kinds.compute_capabilities)
        raise EngineError(
            f"the plan is for GPUs of compute capability {theirs}, and here is one of {capability}: build it for this one: "
            "ddcat export BUNDLE --engine trt-rtx --for current"
        )
    if runtime != kinds.runtime:
        targets = " ".join(f"--for sm{one.replace('.', '')}" for one in kinds.compute_capabilities)
        raise EngineError(
            f"the plan was built by {kinds.runtime}, and here is {runtime}: build it again: ddcat export BUNDLE --engine "
            f"trt-rtx {targets}"
        )


def check_in_effect(information: str, precision: Precision) -> None:
    """
    Refuse a plan whose layers do not compute in the requested precision.

    Parameters
    ----------
    information : str
        JSON of trt.EngineInspector, for a plan that was built with detailed verbosity. Where it names no types it proves
        nothing, and the types of the graph count.
    precision : Precision
        Layers in fp32 are allowed beside it.
    """
    names = _type_names(json.loads(information).get("Layers", []))
    precisions = {name for text in names if (name := next((n for n, pattern in _TYPES if pattern.search(text)), None))}
    if precisions and (precision not in precisions or precisions - {precision, "fp32"}):
        raise EngineError(f"the plan computes in {', '.join(sorted(precisions))} where {precision} was asked for")


def _type_names(node: Any) -> Iterator[str]:
    # "Format/Datatype" up to TensorRT 10, "Format" and "DataType" from 11 on; spelt in more than one way
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and key.lower() in ("format/datatype", "datatype", "format"):
                yield value
            elif isinstance(value, dict | list):
                yield from _type_names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _type_names(item)


def _gpu_fits(built_for: Device, here: Device, hardware: str) -> bool:
    if hardware == "ampere-plus":
        return version_of(here.compute_capability) >= (8, 0)
    if hardware == "same-compute-capability":
        return here.compute_capability == built_for.compute_capability
    return (here.name, here.compute_capability) == (built_for.name, built_for.compute_capability)


def _version_fits(built_with: str, here: str, version_compatible: bool) -> bool:
    if version_compatible:
        return version_of(here)[0] == version_of(built_with)[0] and _numbers(here) >= _numbers(built_with)
    return here == built_with


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _profile(batch: DimRange, height: tuple[int, int], width: tuple[int, int], channels: int) -> Profile:
    most = batch.maximum or batch.minimum  # has one: `profiles_of` looks
    return Profile(
        (batch.minimum, height[0], width[0], channels),
        (batch.minimum, height[1], width[1], channels),
        (most, height[1], width[1], channels),
    )


def _ends(sizes: DimRange) -> tuple[int, int]:
    return sizes.minimum, sizes.maximum or sizes.minimum
