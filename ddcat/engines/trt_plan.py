"""What a TensorRT plan is made for, built with and bound to; nothing here needs TensorRT or a GPU."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

from ddcat.engines.errors import EngineError
from ddcat.manifest import Device, Precision, Range, Shapes

__all__ = [
    "HARDWARE",
    "Flags",
    "Hardware",
    "Profile",
    "builder_flags",
    "check_in_effect",
    "check_runs_here",
    "check_version",
    "hardware_level",
    "profile_for",
    "profiles_of",
    "version_of",
]

Shape = tuple[int, int, int, int]
Hardware = Literal["this", "same-compute-capability", "ampere-plus"]

HARDWARE: dict[Hardware, str] = {  # and the members of trt.HardwareCompatibilityLevel
    "this": "NONE",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "ampere-plus": "AMPERE_PLUS",
}
_REBUILD = "build it for this machine: ddcat export BUNDLE --engine trt"
_WEAK: dict[Precision, str] = {"fp16": "FP16", "int8": "INT8"}  # flags of TensorRT 8, whose networks have no types
_TYPES = (  # in the words of the engine inspector, to be tried in this order; others are not computed in
    ("bf16", re.compile(r"bfloat16|bf16", re.IGNORECASE)),
    ("fp16", re.compile(r"half|fp16|float16", re.IGNORECASE)),
    ("int8", re.compile(r"(?<!u)int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)


class Profile(NamedTuple):
    """Shapes (N, H, W, 3) of the images that kernels are chosen for: from the least to the most, fastest at the best."""

    least: Shape
    best: Shape
    most: Shape


class Flags(NamedTuple):
    """Names of members of trt.BuilderFlag."""

    on: tuple[str, ...]
    off: tuple[str, ...]


def version_of(text: str) -> tuple[int, int]:
    """Major and minor version of "10.13.2.6" or "tensorrt 10.13.2.6"."""
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None:
        raise EngineError(f"{text!r} is not a version of TensorRT: use one such as 10.13.2.6")
    return int(found[1]), int(found[2])


def check_version(version: str, precision: Precision) -> None:
    """Refuse versions that are not known here, and what they do not compute in."""
    major, minor = version_of(version)
    if major not in (10, 11) and (major, minor) != (8, 6):
        raise EngineError(f"TensorRT {version} is not one that ddcat builds for: use 8.6, 10 or 11")
    if major == 8 and precision == "bf16":
        raise EngineError(f"TensorRT {version} does not compute in bf16, only in fp32, fp16 and int8: use 10 or 11")


def profiles_of(shapes: Shapes) -> tuple[Profile, ...]:
    """
    Lay one profile over each size of a ladder, or one over all sizes.

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
        return tuple(_profile(batch, (side, side), (other, other)) for side, other in shapes.sizes)
    return (_profile(batch, _ends(shapes.height), _ends(shapes.width)),)


def profile_for(profiles: Collection[Profile], shape: tuple[int, ...]) -> int:
    """
    Find the first profile that takes a shape.

    Raises
    ------
    EngineError
        Where none does.
    """
    for index, profile in enumerate(profiles):
        if len(shape) == len(profile.least) and all(
            low <= size <= high for low, size, high in zip(profile.least, shape, profile.most, strict=True)
        ):
            return index
    raise EngineError(f"the plan was not built for images of shape {shape}")


def builder_flags(
    version: str, members: Collection[str], precision: Precision, *, version_compatible: bool, repeat: bool
) -> Flags:
    """
    Choose the builder's flags.

    Parameters
    ----------
    version : str
        Of TensorRT.
    members : collection of str
        Of trt.BuilderFlag in that version.
    precision : Precision
    version_compatible : bool
        The plan is to run with later versions of the same major version.
    repeat : bool
        A timing cache is given, from which alone kernels are to be chosen.

    Returns
    -------
    Flags
        TF32, which is on by default, is always off: fp32 means fp32.
    """
    on = [_WEAK[precision]] if precision in _WEAK and version_of(version)[0] == 8 else []  # others take the graph's types
    on += [name for name in ("EDITABLE_TIMING_CACHE", "DISABLE_COMPILATION_CACHE") if name in members]
    if repeat:
        if "ERROR_ON_TIMING_CACHE_MISS" not in members:
            raise EngineError(
                "this TensorRT cannot choose its kernels from a timing cache alone: 10 or 11 can; or build without the cache"
            )
        on.append("ERROR_ON_TIMING_CACHE_MISS")
    if version_compatible:
        on.append("VERSION_COMPATIBLE")
    return Flags(tuple(on), ("TF32",))


def hardware_level(hardware: Hardware, members: Collection[str]) -> str:
    """Give the member of trt.HardwareCompatibilityLevel, or refuse where the version at hand has none."""
    if HARDWARE[hardware] not in members:
        possible = ", ".join(name for name, member in HARDWARE.items() if member in members)
        raise EngineError(f"this TensorRT builds no plan for hardware {hardware!r}, only for {possible}")
    return HARDWARE[hardware]


def check_runs_here(built_for: Device, here: Device, *, version_compatible: bool, hardware: str) -> None:
    """
    Refuse a plan where it does not run.

    A plan runs on the model of GPU and with the version of TensorRT that it was built with, and with the driver of then or a
    later one. Options of its build widen that: to later minor versions, to the compute capability, or to Ampere and later.

    Parameters
    ----------
    built_for, here : Device
        From the manifest, and of this machine.
    version_compatible : bool
    hardware : str
        A key of `HARDWARE`.

    Raises
    ------
    EngineError
        Saying what differs, and how it is built again.
    """
    for what, theirs, ours, fits in (
        ("GPU", f"{built_for.name} ({built_for.compute_capability})", f"{here.name} ({here.compute_capability})",
         _gpu_fits(built_for, here, hardware)),
        ("version", built_for.runtime, here.runtime, _version_fits(built_for.runtime, here.runtime, version_compatible)),
        ("driver", built_for.driver, here.driver, version_of(here.driver) >= version_of(built_for.driver)),
    ):  # fmt: skip
        if not fits:
            raise EngineError(f"the plan was built for another {what}, {theirs}, and here is {ours}: {_REBUILD}")


def check_in_effect(information: str, precision: Precision) -> None:
    """
    Refuse a plan whose layers compute in something else than was asked for.

    Parameters
    ----------
    information : str
        What trt.EngineInspector says of a plan that was built with detailed verbosity, as JSON. Where it names no types it
        proves nothing, and the types of the graph stand.
    precision : Precision
        Besides which there may be layers in fp32.
    """
    names = _type_names(json.loads(information).get("Layers", []))
    found = {name for text in names if (name := next((n for n, pattern in _TYPES if pattern.search(text)), None))}
    if found and (precision not in found or found - {precision, "fp32"}):
        raise EngineError(f"the plan computes in {', '.join(sorted(found))} where {precision} was asked for")


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


def _profile(batch: Range, height: tuple[int, int], width: tuple[int, int]) -> Profile:
    most = batch.maximum or batch.minimum  # has one: `profiles_of` looks
    return Profile(
        (batch.minimum, height[0], width[0], 3), (batch.minimum, height[1], width[1], 3), (most, height[1], width[1], 3)
    )


def _ends(sizes: Range) -> tuple[int, int]:
    return sizes.minimum, sizes.maximum or sizes.minimum
