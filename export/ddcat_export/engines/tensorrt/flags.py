"""Options of the builder of TensorRT plans. Nothing here needs TensorRT or a GPU."""

from collections.abc import Collection
from typing import NamedTuple

from ddcat.choices import Hardware, Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.plan import version_of

__all__ = ["HARDWARE", "PLAN", "TIMINGS", "Flags", "builder_flags", "check_version", "hardware_level"]

PLAN, TIMINGS = "model.plan", "model.timings"  # files of a bundle: the plan, and the timing cache of its build

HARDWARE: dict[Hardware, str] = {  # and the members of trt.HardwareCompatibilityLevel
    "this": "NONE",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "ampere-plus": "AMPERE_PLUS",
}
_WEAK: dict[Precision, str] = {"fp16": "FP16", "int8": "INT8"}  # flags of TensorRT 8, whose networks have no types


class Flags(NamedTuple):
    """Names of members of trt.BuilderFlag."""

    on: tuple[str, ...]
    off: tuple[str, ...]


def check_version(version: str, precision: Precision) -> None:
    """Refuse unknown versions of TensorRT, and precisions that a version does not compute in."""
    major, minor = version_of(version)
    if major not in (10, 11) and (major, minor) != (8, 6):
        raise EngineError(f"TensorRT {version} is not one that ddcat builds for: use 8.6, 10 or 11")
    if major == 8 and precision == "bf16":
        raise EngineError(f"TensorRT {version} does not compute in bf16, only in fp32, fp16 and int8: use 10 or 11")


def builder_flags(
    version: str, members: Collection[str], precision: Precision, *, version_compatible: bool, repeat: bool
) -> Flags:
    """
    Choose the builder's flags.

    Parameters
    ----------
    version : str
        Version of TensorRT.
    members : collection of str
        Members of trt.BuilderFlag in that version.
    precision : Precision
    version_compatible : bool
        The plan must run with later minor versions.
    repeat : bool
        Kernels are chosen from a timing cache alone.

    Returns
    -------
    Flags
        TF32, which TensorRT has on by default, is always off: fp32 means fp32.
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
    """Return the member of trt.HardwareCompatibilityLevel; refuse a level that this version lacks."""
    if HARDWARE[hardware] not in members:
        possible = ", ".join(name for name, member in HARDWARE.items() if member in members)
        raise EngineError(f"this TensorRT builds no plan for hardware {hardware!r}, only for {possible}")
    return HARDWARE[hardware]
