"""Options of the builder of TensorRT plans. Nothing here needs TensorRT or a GPU."""

from collections.abc import Collection

from ddcat.choices import Hardware, Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt import version8
from ddcat.engines.tensorrt.plan import version_of

__all__ = ["HARDWARE", "TIMINGS", "builder_flags", "check_version", "hardware_level"]

TIMINGS = "model.timings"  # a file of a bundle: the timing cache of the plan's build

HARDWARE: dict[Hardware, str] = {  # and the members of trt.HardwareCompatibilityLevel
    "this": "NONE",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "ampere-plus": "AMPERE_PLUS",
}


def check_version(version: str, precision: Precision) -> None:
    """Refuse unknown versions of TensorRT, and precisions that a version does not compute in."""
    major, minor = version_of(version)
    if major not in (10, 11) and (major, minor) != (8, 6):
        raise EngineError(f"ddcat does not support TensorRT {version}: use 8.6, 10 or 11")
    if major == 8 and precision == "bf16":
        raise EngineError(f"TensorRT {version} does not compute in bf16, only in fp32, fp16 and int8: use 10 or 11")


def builder_flags(
    version: str, members: Collection[str], precision: Precision, *, version_compatible: bool, repeat: bool
) -> tuple[str, ...]:
    """
    Choose the builder's flags, by the names of members of trt.BuilderFlag.

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
    """
    on = [version8.FLAGS[precision]] if version_of(version)[0] == 8 and precision in version8.FLAGS else []
    on += [name for name in ("EDITABLE_TIMING_CACHE", "DISABLE_COMPILATION_CACHE") if name in members]
    if repeat:
        if "ERROR_ON_TIMING_CACHE_MISS" not in members:
            raise EngineError(
                "this TensorRT cannot choose its kernels from a timing cache: use TensorRT 10 or 11, or build without the cache"
            )
        on.append("ERROR_ON_TIMING_CACHE_MISS")
    if version_compatible:
        on.append("VERSION_COMPATIBLE")
    return tuple(on)


def hardware_level(hardware: Hardware, members: Collection[str]) -> str:
    """Return the member of trt.HardwareCompatibilityLevel; refuse a level that this version lacks."""
    if HARDWARE[hardware] not in members:
        possible = ", ".join(name for name, member in HARDWARE.items() if member in members)
        raise EngineError(f"this TensorRT cannot build a plan for hardware {hardware!r}, only for {possible}")
    return HARDWARE[hardware]
