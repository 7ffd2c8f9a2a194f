"""
Every use that our code makes of TensorRT and of CUDA, checked against their official Python bindings.

The bindings of three major versions are fetched once (small wheels, see `bindings.py`) and written down as stubs: all classes,
enum members, methods, keyword arguments and their types. mypy then checks our source with them, so that whatever is used, now
or later, is looked up; what no signature tells has no attributes at all, and what is declared Any is refused.
"""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddcat_export.engines.tensorrt.flags import HARDWARE, builder_flags, hardware_level
from tests.engines import bindings
from tests.engines import machine as doubles

ROOT = Path(__file__).parents[2]
API, RUN, CUDA, VERSION8, RTX = (
    ROOT / f"ddcat/engines/tensorrt/{name}.py" for name in ("api", "run", "cuda", "version8", "trt_rtx")
)
BUILD, PLAN, BUILD_RTX = (
    ROOT / f"export/ddcat_export/engines/tensorrt/{name}.py" for name in ("trt", "plan_builder", "trt_rtx")
)
RELEASES = {"8.6.1": "tensorrt-bindings", "10.13.2.6": "tensorrt-cu13-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}
ONLY_10 = ("create_network", "complaint", "memory_size", "create_context")  # of `Api`, which `Version8` has in another form


CACHE = bindings.cache_folder()  # before a test has a cache of its own


@pytest.fixture(
    scope="module",
    params=["11.4.0.106", *(pytest.param(version, marks=pytest.mark.slow) for version in ("8.6.1", "10.13.2.6"))],
)
def release(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A version, and the folder of its stubs."""
    version: str = request.param
    if shutil.which("cc") is None or shutil.which("nm") is None:
        pytest.skip("no C compiler is here, which the stand-ins for TensorRT's libraries need")
    package = RELEASES[version]
    try:
        folder = bindings.fetch(package, version, CACHE / version)
    except (subprocess.SubprocessError, OSError) as cause:
        pytest.skip(f"{package} {version} is not to be had from the package registry: {cause}")
    return version, bindings.write_stubs(folder)


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stubs of TensorRT for RTX, which is installed."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    folder: Path = tmp_path_factory.mktemp("rtx")
    stubs = bindings.write_stubs(folder, "tensorrt_rtx")
    (stubs / "tensorrt_rtx.pyi").write_text("from tensorrt import *\nfrom tensorrt import __version__ as __version__\n")
    return Path(stubs)


def checked(version: str, stubs: Path, files: list[Path], tmp_path: Path) -> str:
    """What mypy says of files with these stubs; nothing if all is well."""
    command = [
        sys.executable, "-m", "mypy", "--strict", "--disallow-any-unimported", "--no-warn-unused-ignores",
        "--follow-imports=silent", "--config-file=", f"--cache-dir={CACHE / 'mypy'}",
        "--no-error-summary", *map(str, files),
    ]  # fmt: skip
    roots = [stubs, ROOT, *(ROOT / name for name in ("train", "export"))]
    environment = {"MYPYPATH": ":".join(map(str, roots)), "PATH": str(tmp_path)}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert not found.stderr, found.stderr
    return "\n".join(line for line in found.stdout.splitlines() if "cuda.bindings" not in line and "ignore_missing" not in line
                     and "missing-imports" not in line)  # fmt: skip


def without_methods_of_10(folder: Path) -> Path:
    """`api` without what `Version8` has in another form."""
    source = API.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") in ONLY_10]
    assert len(nodes) == len(ONLY_10)
    gone = {number for node in nodes for number in range(node.lineno, node.end_lineno + 1)}  # type: ignore[attr-defined]
    lines = [
        line for number, line in enumerate(source.splitlines(), 1) if number not in gone and "AllocationStrategy" not in line
    ]
    file = folder / "api_without.py"
    file.write_text("\n".join(lines))
    return file


def test_all_that_is_used_is_there(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    own = [VERSION8, without_methods_of_10(tmp_path)] if version.startswith("8") else [API]
    assert not checked(version, stubs, [RUN, PLAN, BUILD, *own], tmp_path)


def test_all_that_is_used_of_rtx_is_there(rtx: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(RTX.read_text(encoding="utf-8").replace("create_runtime_config()", "create_run_config()"))
    said = checked("rtx", rtx, [API, RUN, PLAN, RTX, BUILD_RTX, planted], tmp_path)
    assert {line.partition(":")[0] for line in said.splitlines()} == {"planted.py"}, said
    assert "create_run_config" in said


WRONG = {
    "a class": (PLAN, "api.trt.Builder(", "api.trt.Bilder(", "Bilder"),
    "a member": (PLAN, "ProfilingVerbosity.DETAILED", "ProfilingVerbosity.DETAILLED", "DETAILLED"),
    "a method": (BUILD, "config.create_timing_cache", "config.make_timing_cache", "make_timing_cache"),
    "a keyword": (BUILD, "ignore_mismatch=False", "ignore_mismatches=False", "ignore_mismatches"),
    "a property": (BUILD, "config.hardware_compatibility_level = ", "config.hardware_level = ", "hardware_level"),
    "what a call gives": (PLAN, "[tensor.name for tensor in inputs]", "[tensor.title for tensor in inputs]", "title"),
    "an argument": (PLAN, "parser.parse(graph)", "parser.parse(network)", "incompatible type"),
    "a missing argument": (PLAN, "OnnxParser(network, log.logger)", "OnnxParser(network)", "Missing positional argument"),
}


def test_a_wrong_name_is_found(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    files = []
    for index, (source, right, wrong, _) in enumerate(WRONG.values()):
        text = source.read_text(encoding="utf-8")
        assert text.count(right) == 1, right
        files.append(tmp_path / f"planted{index}.py")
        files[-1].write_text(text.replace(right, wrong))
    said = checked(version, stubs, files, tmp_path)
    for index, (what, (*_, message)) in enumerate(WRONG.items()):
        assert re.search(rf"planted{index}\.py:\d+: error: .*{message}", said), f"{what} went unnoticed in\n{said}"


NOT_THERE = {  # names of the other class; version 10 still has what 8.6 had
    "8.6.1": (API, ["STRONGLY_TYPED", "USER_MANAGED|ExecutionContextAllocationStrategy"]),
    "10.13.2.6": (VERSION8, []),
    "11.4.0.106": (VERSION8, ["EXPLICIT_BATCH"]),
}


def test_the_other_class_s_names_are_not_there(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    other, names = NOT_THERE[version]
    said = checked(version, stubs, [other], tmp_path)
    assert all(re.search(name, said) for name in names), said
    assert bool(said) is bool(names), said


def test_flags_that_are_chosen_by_name_are_there(release: tuple[str, Path]) -> None:
    version, stubs = release
    text = (stubs / "tensorrt.pyi").read_text(encoding="utf-8")
    members = set(re.findall(r"(\w+): ClassVar\[BuilderFlag\]", text))
    levels = set(re.findall(r"(\w+): ClassVar\[HardwareCompatibilityLevel\]", text))
    for precision in ("fp32", "fp16", "int8"):
        for compatible in (False, True):
            flags = builder_flags(version, members, precision, version_compatible=compatible, repeat=version[0] == "1")
            assert {*flags, "TF32"} <= members
    assert all(hardware_level(hardware, levels) in levels for hardware in HARDWARE if version[0] == "1" or hardware == "this")


def test_the_recording_machine_has_no_names_of_its_own(release: tuple[str, Path]) -> None:
    version, stubs = release
    text = (stubs / "tensorrt.pyi").read_text(encoding="utf-8")
    machine = doubles.Machine(version)
    trt = doubles.tensorrt_of(machine)
    enums = {name: value for name, value in vars(trt).items() if hasattr(value, "__members__")}
    assert len(enums) >= 8
    for name, value in enums.items():
        real = set(re.findall(rf"(\w+): ClassVar\[{name}\]", text))
        assert set(value.__members__) <= real or (not real and version.startswith("8")), name


def test_no_any_hides_a_use() -> None:
    for file in (API, VERSION8, RTX, BUILD, PLAN, BUILD_RTX):
        assert "Any" not in file.read_text(encoding="utf-8")
    tree = ast.parse(RUN.read_text(encoding="utf-8"))
    anys = {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign | ast.arg) and "Any" in ast.dump(node)
    }
    assert anys == {"images: npt.NDArray[Any]", "self._graph: Any = None"}  # of numpy and CUDA


def cuda_uses(source: str) -> Iterator[tuple[str, int | None]]:
    """Dotted names below `cudart` in a source, and the number of arguments of those that are called."""
    tree = ast.parse(source)
    calls = {id(node.func): len(node.args) + len(node.keywords) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("cudart."):
            yield ast.unparse(node).removeprefix("cudart."), calls.get(id(node))


def wrong_cuda_uses(source: str) -> list[str]:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    wrong = []
    for name, arguments in cuda_uses(source):
        value = runtime
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            wrong.append(name)
        elif arguments is not None:
            head = (inspect.getdoc(value) or "").partition("\n")[0]
            wanted = re.fullmatch(r"\w+\((.*)\)", head)
            assert wanted is not None, head
            if arguments != len([part for part in wanted[1].split(",") if part.strip()]):
                wrong.append(f"{name} with {arguments} arguments")
    return wrong


def test_all_that_is_used_of_cuda_is_there() -> None:
    source = CUDA.read_text(encoding="utf-8")
    assert len(set(cuda_uses(source))) >= 20
    assert not wrong_cuda_uses(source)
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert {"name", "major", "minor"} <= set(dir(runtime.cudaDeviceProp))


def test_a_wrong_name_of_cuda_is_found() -> None:
    source = CUDA.read_text(encoding="utf-8")
    assert wrong_cuda_uses(source.replace("cudaMemcpyHostToDevice", "cudaMemcpyHostToGpu")) == [
        "cudaMemcpyKind.cudaMemcpyHostToGpu"
    ]
    assert wrong_cuda_uses(source.replace("cudaGraphInstantiate(graph, 0)", "cudaGraphInstantiate(graph)")) == [
        "cudaGraphInstantiate with 1 arguments"
    ]
