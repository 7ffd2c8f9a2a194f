"""
Every use that our code makes of TensorRT and of CUDA, checked against their official Python bindings.

The bindings of three major versions are fetched once (small wheels, see `bindings.py`) and written down as stubs: all classes,
enum members, methods, keyword arguments and their types. mypy then checks our source with them, so that whatever is used, now
or later, is looked up; what no signature tells has no attributes at all, and what is declared Any is refused.
"""

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ddcat_export.engines.tensorrt.flags import HARDWARE, builder_flags, hardware_level

ROOT = Path(__file__).parents[2]
RUN, COMPAT, CUDA = (ROOT / f"ddcat/engines/tensorrt/{name}.py" for name in ("run", "compat", "cuda"))
BUILD = ROOT / "export/ddcat_export/engines/tensorrt/build.py"
RELEASES = {  # with the class of `compat` that is for them alone
    "8.6.1": ("tensorrt-bindings", "Version8"),
    "10.13.2.6": ("tensorrt-cu13-bindings", "Version10"),
    "11.4.0.106": ("tensorrt-cu13-bindings", "Version10"),
}


def beside(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A version, and the folder of its stubs."""
    bindings = beside("bindings")
    version: str = request.param
    if shutil.which("cc") is None or shutil.which("nm") is None:
        pytest.skip("no C compiler is here, which the stand-ins for TensorRT's libraries need")
    package = RELEASES[version][0]
    try:
        folder = bindings.fetch(package, version, bindings.cache_folder() / version)
    except (subprocess.SubprocessError, OSError) as cause:
        pytest.skip(f"{package} {version} is not to be had from the package registry: {cause}")
    return version, bindings.write_stubs(folder)


def checked(version: str, stubs: Path, files: list[Path], tmp_path: Path) -> str:
    """What mypy says of files with these stubs; nothing if all is well."""
    command = [
        sys.executable, "-m", "mypy", "--strict", "--disallow-any-unimported", "--no-warn-unused-ignores",
        "--follow-imports=silent", "--config-file=", f"--cache-dir={stubs / 'mypy'}", "--no-error-summary", *map(str, files),
    ]  # fmt: skip
    roots = [stubs, ROOT, *(ROOT / name for name in ("train", "export"))]
    environment = {"MYPYPATH": ":".join(map(str, roots)), "PATH": str(tmp_path)}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert not found.stderr, found.stderr
    return "\n".join(line for line in found.stdout.splitlines() if "cuda.bindings" not in line and "ignore_missing" not in line
                     and "missing-imports" not in line)  # fmt: skip


def compat_of(name: str, folder: Path) -> Path:
    """A file with one class of `compat` alone."""
    tree = ast.parse(COMPAT.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import) or getattr(node, "name", "") == name]
    assert len(tree.body) == 2
    file = folder / f"compat_{name.lower()}.py"
    file.write_text(ast.unparse(tree))
    return file


def test_all_that_is_used_is_there(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    assert not checked(version, stubs, [RUN, BUILD, compat_of(RELEASES[version][1], tmp_path)], tmp_path)


WRONG = {
    "a class": ("trt.Builder(log)", "trt.Bilder(log)", "Bilder"),
    "a member": ("trt.ProfilingVerbosity.DETAILED", "trt.ProfilingVerbosity.DETAILLED", "DETAILLED"),
    "a method": ("config.create_timing_cache", "config.make_timing_cache", "make_timing_cache"),
    "a keyword": ("ignore_mismatch=False", "ignore_mismatches=False", "ignore_mismatches"),
    "a property": ("config.hardware_compatibility_level = ", "config.hardware_level = ", "hardware_level"),
    "what a call gives": ("parser.get_error(0).desc()", "parser.get_error(0).description()", "description"),
    "an argument": ("parser.parse(graph)", "parser.parse(network)", "incompatible type"),
    "a missing argument": ("trt.OnnxParser(network, log)", "trt.OnnxParser(network)", "Missing positional argument"),
}


def test_a_wrong_name_is_found(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    source = BUILD.read_text(encoding="utf-8")
    files = []
    for index, (right, wrong, _) in enumerate(WRONG.values()):
        assert source.count(right) == 1, right
        files.append(tmp_path / f"planted{index}.py")
        files[-1].write_text(source.replace(right, wrong))
    said = checked(version, stubs, files, tmp_path)
    for index, (what, (_, _, message)) in enumerate(WRONG.items()):
        assert re.search(rf"planted{index}\.py:\d+: error: .*{message}", said), f"{what} went unnoticed in\n{said}"


NOT_THERE = {  # of the other class's names; version 10 still has what 8.6 had
    "8.6.1": ("Version10", ["STRONGLY_TYPED", "USER_MANAGED|ExecutionContextAllocationStrategy"]),
    "10.13.2.6": ("Version8", []),
    "11.4.0.106": ("Version8", ["EXPLICIT_BATCH"]),
}


def test_the_other_class_s_names_are_not_there(release: tuple[str, Path], tmp_path: Path) -> None:
    version, stubs = release
    other, names = NOT_THERE[version]
    said = checked(version, stubs, [compat_of(other, tmp_path)], tmp_path)
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
            assert {*flags.on, *flags.off} <= members
    assert all(hardware_level(hardware, levels) in levels for hardware in HARDWARE if version[0] == "1" or hardware == "this")


def test_the_recording_machine_has_no_names_of_its_own(release: tuple[str, Path]) -> None:
    version, stubs = release
    text = (stubs / "tensorrt.pyi").read_text(encoding="utf-8")
    doubles = beside("machine")
    machine = doubles.Machine(version)
    trt = doubles.tensorrt_of(machine)
    enums = {name: value for name, value in vars(trt).items() if hasattr(value, "__members__")}
    assert len(enums) >= 8
    for name, value in enums.items():
        real = set(re.findall(rf"(\w+): ClassVar\[{name}\]", text))
        assert set(value.__members__) <= real or (not real and version.startswith("8")), name


def test_no_any_hides_a_use() -> None:
    for file in (BUILD, COMPAT):
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
