"""
TensorRT's official Python bindings without TensorRT: what they offer, as stubs that a type checker reads.

The bindings are a small wheel; they load when shared libraries stand in that hold nothing but the C symbols which they look
for. Then names, enum members, signatures and documented attributes are TensorRT's own; nothing can be built or run. Run as a
script, in a process of its own, this file writes the stubs of the bindings that it can import.
"""

import importlib
import inspect
import keyword
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

LIBRARIES = {"8": ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")}
WANTED = ("create", "get", "init", "_ZN11nvuffparser", "_ZN14nvcaffeparser1")  # that the stand-ins must have
NAMES = {  # where a signature has that of C++
    "nvinfer1::IEngineInspector": "EngineInspector",
    "nvinfer1::ILogger::Severity": "ILogger.Severity",
    "nvonnxparser::IParserError": "ParserError",
}
TYPES = {
    "int": "int", "str": "str", "bool": "bool", "float": "float", "None": "None", "typing.SupportsInt": "int",
    "buffer": "bytes", "tuple": "tuple[Any, ...]", "typing_extensions.Buffer": "bytes", "capsule": "int",
}  # fmt: skip
HEAD = """# mypy: ignore-errors
from collections.abc import Sequence
from typing import Any, ClassVar, overload
__version__: str
"""


def fetch(package: str, version: str, folder: Path) -> Path:
    """Download bindings and compile their stand-ins, once; gives a folder with both. Raises CalledProcessError, OSError."""
    site = folder / "site"
    if not (folder / "ready").exists():
        download = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--target",
            str(site),
        ]
        subprocess.run([*download, f"{package}=={version}"], check=True, capture_output=True, timeout=120)
        binding = next(site.rglob("tensorrt.so"))
        listed = subprocess.run(["nm", "-D", "--undefined-only", binding], check=True, capture_output=True, text=True).stdout
        symbols = {line.split()[-1] for line in listed.splitlines() if "@" not in line}
        source = folder / "standin.c"
        source.write_text("".join(f"void *{s}(void) {{ return 0; }}\n" for s in sorted(symbols) if s.startswith(WANTED)))
        major = version.partition(".")[0]
        for library in LIBRARIES.get(major, LIBRARIES["8"][:3]):
            file = folder / f"lib{library}.so.{major}"
            content = source if library == "nvinfer" else Path(os.devnull)
            command = ["cc", "-shared", "-fPIC", "-x", "c", content, "-o", file, f"-Wl,-soname,{file.name}"]
            subprocess.run(command, check=True, capture_output=True)
        (folder / "ready").touch()
    return folder


def write_stubs(folder: Path, module: str = "tensorrt_bindings") -> Path:
    """Give a folder for MYPYPATH in which `tensorrt` is what the fetched bindings, or those of another module, are."""
    stubs = folder / "stubs" / "tensorrt.pyi"
    if not stubs.exists():
        paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, __file__, module]
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        stubs.parent.mkdir(exist_ok=True, parents=True)
        stubs.write_text(text)
    return stubs.parent


def describe(trt: ModuleType) -> str:
    """Write stubs; what has no known type is an `object`, which has no attributes, so that no use of it goes unchecked."""
    classes = {name: value for name, value in vars(trt).items() if inspect.isclass(value) and "tensorrt" in value.__module__}
    return HEAD + "".join(_class(name, value, set(classes)) for name, value in classes.items())


def _class(name: str, cls: type, known: set[str], indent: str = "") -> str:
    base = next((b.__name__ for b in cls.__bases__ if b.__name__ in known), "Sequence[int]" if name == "Dims" else "object")
    lines = [f"{indent}class {name}({base}):\n"]
    inner = indent + "    "
    members = getattr(cls, "__members__", None)
    if members is not None:
        lines += [f"{inner}__members__: ClassVar[dict[str, {cls.__qualname__}]]\n{inner}name: str\n"]
        lines += [f"{inner}def __int__(self) -> int: ...\n{inner}def __hash__(self) -> int: ...\n"]
        lines += [f"{inner}{m}: ClassVar[{cls.__qualname__}]\n" for m in members if not keyword.iskeyword(m)]
    if name == "Dims":
        lines += [f"{inner}def __getitem__(self, index: Any) -> Any: ...\n{inner}def __len__(self) -> int: ...\n"]
    if name == "IHostMemory":
        lines += [f"{inner}def __buffer__(self, flags: int) -> memoryview: ...\n"]
    for key, value in vars(cls).items():
        if keyword.iskeyword(key) or (key.startswith("_") and key != "__init__"):
            continue
        if inspect.isclass(value):
            lines.append(_class(key, value, known, inner))
        elif isinstance(value, property) and (key != "name" or members is None):
            lines += _property(key, value, cls, known, inner)
        elif callable(value):
            lines += _function(key, value.__doc__ or "", known, inner)
        elif members is None and type(value).__qualname__.partition(".")[0] in known:
            lines.append(f"{inner}{key}: ClassVar[{type(value).__qualname__}]\n")
    return "".join([*lines, f"{inner}...\n"])


def _property(key: str, value: property, cls: type, known: set[str], indent: str) -> list[str]:
    found = re.search(rf":ivar {key}: :class:`([\w.]+)`", cls.__doc__ or "")
    kind = _type(found[1], known) if found else "object"
    if value.fset is not None:
        return [f"{indent}{key}: {kind if kind != 'object' else 'Any'}\n"]
    return [f"{indent}@property\n{indent}def {key}(self) -> {kind}: ...\n"]


def _function(key: str, text: str, known: set[str], indent: str) -> list[str]:
    signatures = re.findall(rf"^\s*(?:\d+\. )?{key}\((self: .*?)\) -> (.+)$", text, re.MULTILINE)
    lines = []
    for arguments, result in signatures:
        parts = _arguments(_split(arguments)[1:], known)
        lines += [f"{indent}@overload\n"] if len(signatures) > 1 else []
        lines.append(f"{indent}def {key}({', '.join(['self', *parts])}) -> {_type(result, known)}: ...\n")
    return lines


def _arguments(texts: list[str], known: set[str]) -> list[str]:
    parts, optional = [], False
    for text in texts:
        found = re.fullmatch(r"(\w+): (.+?)( = .+)?", text)
        assert found is not None, text
        kind = _type(found[2], known)
        name = f"{found[1]}_" if keyword.iskeyword(found[1]) else found[1]
        optional = optional or found[3] is not None  # TensorRT has arguments with no default after some that have one
        parts.append(f"{name}: {'Dims | Sequence[int]' if kind == 'Dims' else kind}{' = ...' if optional else ''}")
    return parts


def _split(arguments: str) -> list[str]:
    # at commas that are in no bracket
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _type(text: str, known: set[str]) -> str:
    text = text.strip()
    short = NAMES.get(text, re.sub(r"^(tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?|nvinfer1|nvonnxparser)(\.|::)", "", text))
    inner = re.fullmatch(r"(?:typing\.)?(?:List|list|collections\.abc\.Sequence)\[(.+)\]", short)
    if inner:
        return f"Sequence[{_type(inner[1], known)}]"
    return short if short.partition(".")[0] in known else TYPES.get(short, "object")


def cache_folder() -> Path:
    """Where the wheels are kept from one run to the next."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ddcat" / "tests" / f"tensorrt-{sysconfig.get_python_version()}"


if __name__ == "__main__":
    print(describe(importlib.import_module(sys.argv[1])))
