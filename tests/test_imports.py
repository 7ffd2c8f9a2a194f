"""The rules of imports, read from the source of every module."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ddcat": ROOT / "ddcat",
    "ddcat_train": ROOT / "train/ddcat_train",
    "ddcat_export": ROOT / "export/ddcat_export",
    "ddcat_serve": ROOT / "serve/ddcat_serve",
    "ddcat_bench": ROOT / "bench/ddcat_bench",
}
MAY_IMPORT = {
    "ddcat": {"ddcat"},
    "ddcat_train": {"ddcat", "ddcat_train"},
    "ddcat_serve": {"ddcat", "ddcat_serve"},
    "ddcat_export": {"ddcat", "ddcat_train", "ddcat_export"},
    "ddcat_bench": {"ddcat", "ddcat_train", "ddcat_export", "ddcat_serve", "ddcat_bench"},
}
ENGINES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_bindings"}
OF_PREDICT = {
    "formats.py": {"PIL"},
    "results.py": {"PIL"},
    "sources.py": {"fsspec"},
    "video.py": {"av"},
    "on_ray.py": {"ray"},  # at its top: it is imported in a function
}  # in functions
CORE = {"numpy", "pydantic", "rich", "typer", "yaml"}  # and the standard library
OF_IMAGES = {
    "preprocess.py": {"PIL", "cv2"},
    "image_pixels.py": {"PIL", "cv2"},
    "band_files.py": {"cv2"},
    "geotiff.py": {"rasterio"},
}


def imports(file: Path, *, types: bool = True) -> Iterator[tuple[str, int]]:
    """Top-level packages that a file imports anywhere, functions and, with `types`, TYPE_CHECKING included, with the line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if types or not for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], node.lineno


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def modules(package: str) -> list[Path]:
    """All but the Python interface, which names what it loads when it is asked for: `test_the_interface_is_lazy`."""
    return sorted(set(PACKAGES[package].rglob("*.py")) - {PACKAGES["ddcat"] / "__init__.py"})


def scripts() -> list[Path]:
    folders = ("bench/cpu", "bench/gpu", "bench/paper", "bench/serving", "docker", "docs", "examples")
    return sorted(file for folder in folders for file in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", scripts(), ids=lambda script: str(script.relative_to(ROOT)))
def test_what_a_script_takes_of_ours_is_there(script: Path) -> None:
    """Most of them run in slow tests alone, and none is checked by mypy."""
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in {*PACKAGES, "bench"}
        for alias in node.names
    ]
    if any(module.endswith((".trt_rtx", ".parser_check")) for module, _ in taken):
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    missing = [f"{module}.{name}" for module, name in taken if not hasattr(importlib.import_module(module), name)]
    assert [name for name in missing if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_of_ours_a_package_imports_what_the_design_allows(package: str) -> None:
    faults = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in modules(package)
        for name, line in imports(file)
        if name in PACKAGES and name not in MAY_IMPORT[package]
    ]
    assert not faults
    assert modules(package), "a package that is not there obeys every rule"


def test_the_interface_is_lazy() -> None:
    tree = ast.parse((PACKAGES["ddcat"] / "__init__.py").read_text(encoding="utf-8"))
    loaded = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in loaded for alias in node.names} == {"importlib", "TYPE_CHECKING", "Any"}


def test_the_core_needs_only_what_every_installation_has() -> None:
    allowed = set(sys.stdlib_module_names) | CORE | {"ddcat"}
    files = [file for file in modules("ddcat") if "engines" not in file.parts]
    for file in files:
        found = {name for name, _ in imports(file)}
        of_predict = OF_PREDICT.get(file.name, set()) if file.parent.name == "predict" else set()
        assert found <= allowed | OF_IMAGES.get(file.name, set()) | of_predict, file.name
    for name in OF_IMAGES:  # in functions: whoever reads no image needs no library of images
        top = ast.parse((PACKAGES["ddcat"] / name).read_text(encoding="utf-8")).body
        modules_at_top = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        assert not {"PIL", "cv2"} & (modules_at_top | {node.module for node in top if isinstance(node, ast.ImportFrom)})


@pytest.mark.parametrize(
    ("package", "banned"), [("ddcat", {"torch"}), ("ddcat_serve", {"torch", "lightning_fabric"}), ("ddcat_train", ENGINES)]
)
def test_no_torch_in_serving_and_no_engine_in_training(package: str, banned: set[str]) -> None:
    assert not {name for file in modules(package) for name, _ in imports(file)} & banned


def test_an_engine_is_imported_in_its_own_file_only() -> None:
    users = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in modules(package)
        for name, _ in imports(file, types=False)
        if name in ENGINES
    }
    running = ("onnxruntime", "openvino", "tensorrt/trt", "tensorrt/trt_rtx")
    building = ("onnxruntime_calibration", "tensorrt/trt_rtx")
    assert users == {
        *(f"ddcat/engines/{file}.py" for file in running),
        *(f"export/ddcat_export/engines/{file}.py" for file in building),
    }


def test_the_rules_are_seen_to_be_broken(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from ddcat_train.run.loop import train\n    import torch.nn as nn\n")
    assert list(imports(file)) == [("ddcat_train", 2), ("torch", 3)]
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n")
    assert list(imports(file)) == [("typing", 1), ("torch", 3)]
    assert list(imports(file, types=False)) == [("typing", 1)]


def test_all_packages_are_the_checkout(request: pytest.FixtureRequest) -> None:
    for package, folder in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).parent == folder


def loaded(file: Path, known: dict[str, Path], *, lazy: bool = False) -> set[str]:
    """Modules of ours that a file imports at its top or, with `lazy`, anywhere; types apart."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {inner if (inner := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif lazy and not for_types(node):
                waiting.append(node)
    return names & set(known)


KNOWN = {
    ".".join(part for part in file.relative_to(folder.parent).with_suffix("").parts if part != "__init__"): file
    for folder in PACKAGES.values()
    for file in folder.rglob("*.py")
}


def circle(known: dict[str, Path]) -> list[str]:
    """Return a circle of modules, each of which imports the next, at its top or in a function; none: an empty list."""
    graph = {
        name: {
            package
            for module in loaded(file, known, lazy=True)
            for package in accumulate(module.split("."), "{}.{}".format)
            # who imports a.b.c from outside of a.b loads a.b first
            if package in known and (package == module or not name.startswith(f"{package}."))
        }
        - {name}
        for name, file in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_modules_import_each_other_in_no_circle() -> None:
    assert not circle({name: file for name, file in KNOWN.items() if name != "ddcat"})  # the interface names all, loads none


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("through", ["package.two", "package.room.three"])
def test_a_circle_is_seen(tmp_path: Path, lazy: bool, through: str) -> None:
    sources = {
        "package": "",
        "package.one": f"def f():\n    import {through}\n" if lazy else f"import {through}\n",
        "package.two": "from package import one\n",
        "package.room": "from package.one import f\n",
        "package.room.three": "",
    }
    known = {name: tmp_path / name for name in sources}
    for name, source in sources.items():
        known[name].write_text(source)
    assert set(circle(known)) == {"package.one", "package.room" if "room" in through else "package.two"}
    known["package.one"].write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.two\n")
    assert not circle(known)


def test_the_gate_needs_no_trainer() -> None:
    waiting, modules_loaded = ["ddcat_bench.gate.pipeline"], set[str]()
    while waiting:
        name = waiting.pop()
        waiting += loaded(KNOWN[name], KNOWN) - modules_loaded
        modules_loaded.add(name)
    assert "ddcat_bench.gate.pool" in modules_loaded
    assert "ddcat_train.run.trainer" not in modules_loaded


PARTS = {
    "timing": set(),
    "corruption": set(),
    "certify": set(),
    "perturbation": set(),
    "attack": {"timing", "corruption", "certify", "perturbation"},
    "gate": {"timing", "perturbation", "attack"},
    "compare": {"attack", "gate"},
    "card": {"attack", "gate", "corruption", "certify", "perturbation"},
    "drift": {"attack", "gate"},
    "fidelity": {"attack"},
}


def test_the_parts_of_bench_import_what_the_architecture_allows() -> None:
    """What they share lies beside them, and needs none of them but in a command."""
    folder = PACKAGES["ddcat_bench"]
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(PARTS)
    for file in modules("ddcat_bench"):
        own = file.relative_to(folder).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ddcat_bench":
                assert node.module != "ddcat_bench", file
                part = (node.module or "").split(".")[1]
                if part in PARTS and own not in (part, "cli.py"):
                    assert part in PARTS.get(own, set()), f"{file.relative_to(ROOT)} imports {node.module}"
