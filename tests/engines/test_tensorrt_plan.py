import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat.choices import Precision
from ddcat.engines.base import smallest_batch
from ddcat.engines.checks import check_images
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.plan import (
    check_in_effect,
    check_kind_runs_here,
    check_runs_here,
    profile_for,
    profiles_of,
    version_of,
)
from ddcat.manifest import Device, DeviceKinds, DimRange, InputShapes
from ddcat_export.engines.tensorrt.flags import builder_flags, check_version, hardware_level
from ddcat_export.engines.tensorrt.graph import last_opset

ALL = ("FP16", "INT8", "TF32", "EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE")
H100 = Device(name="H100", compute_capability="9.0", driver="CUDA 13.0", runtime="tensorrt 10.13.2.6")

sides = st.integers(33, 600)
ranges = st.tuples(sides, sides).map(lambda ends: DimRange(minimum=min(ends), maximum=max(ends)))
batches = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda ends: DimRange(minimum=min(ends), maximum=max(ends)))


@st.composite
def ladders(draw: st.DrawFn) -> InputShapes:
    sizes = tuple(sorted(draw(st.sets(st.tuples(sides, sides), min_size=1, max_size=5)), key=lambda size: size[0] * size[1]))
    height, width = (DimRange(minimum=min(axis), maximum=max(axis)) for axis in zip(*sizes, strict=True))
    return InputShapes(batch=draw(batches), height=height, width=width, sizes=sizes)


free = st.builds(InputShapes, batch=batches, height=ranges, width=ranges)


@given(ladders() | free)
def test_profiles_take_what_the_shapes_take(shapes: InputShapes) -> None:
    """Each batch that an engine lets pass has a profile, and each profile is ordered and within the shapes."""
    profiles = profiles_of(shapes)
    assert len(profiles) == (1 if shapes.sizes is None else len(shapes.sizes))
    for least, best, most in profiles:
        assert all(low <= middle <= high for low, middle, high in zip(least, best, most, strict=True))
        assert least[0] == best[0] == shapes.batch.minimum
        assert most[0] == shapes.batch.maximum
        for count, height, width, channels in (least, best, most):
            assert channels == 3
            assert count in shapes.batch
            assert height in shapes.height
            assert width in shapes.width
            assert shapes.sizes is None or (height, width) in shapes.sizes
        assert profile_for(profiles, most) <= profiles.index((least, best, most))
    smallest = smallest_batch(shapes)
    check_images(smallest, shapes)
    assert profile_for(profiles, smallest.shape) == 0


@given(ladders(), st.tuples(st.integers(1, 9), sides, sides))
def test_a_ladder_has_a_profile_for_its_sizes_alone(shapes: InputShapes, shape: tuple[int, int, int]) -> None:
    assert shapes.sizes is not None
    taken = shape[0] in shapes.batch and shape[1:] in shapes.sizes
    try:
        index = profile_for(profiles_of(shapes), (*shape, 3))
    except EngineError:
        assert not taken
    else:
        assert taken
        assert shapes.sizes[index] == shape[1:]


@pytest.mark.parametrize("axis", ["batch", "height", "width"])
def test_an_axis_without_an_end_is_refused(axis: str) -> None:
    ends = dict.fromkeys(("batch", "height", "width"), DimRange(minimum=1, maximum=64)) | {
        axis: DimRange(minimum=1, maximum=None)
    }
    with pytest.raises(EngineError, match=f"this {axis} has no upper end: state the largest, or sizes"):
        profiles_of(InputShapes(**ends))


@pytest.mark.parametrize("version", ["8.6.1", "10.13.2.6", "11.4.0.106"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("repeat", [True, False])
def test_flags(version: str, precision: Precision, repeat: bool) -> None:
    flags = builder_flags(version, ALL, precision, version_compatible=False, repeat=repeat)
    weak = set(flags) & {"FP16", "INT8", "BF16"}
    assert weak == ({precision.upper()} if version.startswith("8") and precision in ("fp16", "int8") else set())
    assert ("ERROR_ON_TIMING_CACHE_MISS" in flags) is repeat


def test_flags_that_a_version_lacks() -> None:
    members = ("FP16", "INT8", "TF32")
    assert builder_flags("8.6.1", members, "fp32", version_compatible=False, repeat=False) == ()
    with pytest.raises(EngineError, match="cannot choose its kernels from a timing cache: use"):
        builder_flags("8.6.1", members, "fp32", version_compatible=False, repeat=True)
    assert hardware_level("ampere-plus", ("NONE", "AMPERE_PLUS")) == "AMPERE_PLUS"
    with pytest.raises(
        EngineError, match="cannot build a plan for hardware 'same-compute-capability', only for this, ampere-plus"
    ):
        hardware_level("same-compute-capability", ("NONE", "AMPERE_PLUS"))


@pytest.mark.parametrize(
    ("change", "compatible", "hardware", "runs"),
    [
        ({}, False, "this", True),
        ({"name": "H200"}, False, "this", False),
        ({"name": "H200"}, False, "same-compute-capability", True),
        ({"name": "A100", "compute_capability": "8.0"}, False, "same-compute-capability", False),
        ({"name": "A100", "compute_capability": "8.0"}, False, "ampere-plus", True),
        ({"name": "B200", "compute_capability": "10.0"}, False, "ampere-plus", True),
        ({"name": "T4", "compute_capability": "7.5"}, False, "ampere-plus", False),
        ({"driver": "CUDA 12.9"}, False, "this", False),
        ({"driver": "CUDA 13.1"}, False, "this", True),
        ({"runtime": "tensorrt 10.13.3.9"}, False, "this", False),
        ({"runtime": "tensorrt 10.13.3.9"}, True, "this", True),
        ({"runtime": "tensorrt 10.9.0.34"}, True, "this", False),
        ({"runtime": "tensorrt 11.4.0.106"}, True, "this", False),
    ],
)
def test_where_a_plan_runs(change: dict[str, str], compatible: bool, hardware: str, runs: bool) -> None:
    here = H100.model_copy(update=change)
    if runs:
        check_runs_here(H100, here, version_compatible=compatible, hardware=hardware)
    else:
        with pytest.raises(EngineError, match=r"the plan was built for another .*: ddcat export BUNDLE --engine trt$"):
            check_runs_here(H100, here, version_compatible=compatible, hardware=hardware)


L40S = DeviceKinds(compute_capabilities=("8.9", "12.0"), runtime="tensorrt_rtx 1.7.1.116")


def test_where_a_plan_for_kinds_of_gpu_runs() -> None:
    check_kind_runs_here(L40S, "12.0", "tensorrt_rtx 1.7.1.116")
    with pytest.raises(
        EngineError, match=r"for GPUs of compute capability 8.9, 12.0, and here is one of 9.0: .* --for current$"
    ):
        check_kind_runs_here(L40S, "9.0", "tensorrt_rtx 1.7.1.116")
    with pytest.raises(
        EngineError, match=r"by tensorrt_rtx 1.7.1.116, and here is tensorrt_rtx 1.8.0.1: .* --for sm89 --for sm120$"
    ):
        check_kind_runs_here(L40S, "8.9", "tensorrt_rtx 1.8.0.1")


def layers(*types: str, key: str = "Format/Datatype") -> str:
    return json.dumps(
        {"Layers": [{"Name": f"{t} half int8", "Inputs": [{"Name": "x", key: t}]} for t in types], "Bindings": []}
    )


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        (layers("Row major linear FP32", "Float", "UInt8"), "fp32"),
        (layers("Channel major FP16 format where channel % 8 == 0", "Row major linear FP32"), "fp16"),
        (layers("Half", "Float", "Int64", "Bool"), "fp16"),
        (layers("BFloat16", "Float"), "bf16"),
        (layers("Row major linear BF16 format"), "bf16"),
        (layers("Thirty-two wide channel vectorized row major Int8 format", "Float"), "int8"),
        (layers("Int8", "Float", key="DataType"), "int8"),
        (json.dumps({"Layers": ["only", "half", "names"]}), "fp32"),
        (json.dumps({}), "int8"),
    ],
)
def test_the_precision_in_effect(told: str, precision: Precision) -> None:
    check_in_effect(told, precision)
    others: list[Precision] = [other for other in ("fp16", "bf16", "int8", "fp32") if other != precision]
    if "Format" in told or "DataType" in told:
        for other in others:
            with pytest.raises(EngineError, match=rf"computes in .* where {other} was asked for"):
                check_in_effect(told, other)


@pytest.mark.parametrize(
    ("version", "opset"), [("8.6.1", 17), ("10.0.1", 20), ("10.13.2.6", 22), ("10.16.1.11", 24), ("11.4.0.106", 24)]
)
def test_the_newest_opset(version: str, opset: int) -> None:
    assert last_opset(version) == opset
    check_version(version, "fp32")


def test_a_version_is_read_wherever_it_stands() -> None:
    assert version_of("10.13.2.6") == version_of("tensorrt 10.13.2.6") == (10, 13)
    with pytest.raises(EngineError, match=r"'tensorrt' is not a version of TensorRT: use one such as 10\.13\.2\.6"):
        version_of("tensorrt")
