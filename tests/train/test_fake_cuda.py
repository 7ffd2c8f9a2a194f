"""CUDA's half of training, on a machine without a GPU: devices, waits and generators of every method's step."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from ddcat_train.choices import MethodName
from tests.train import fake_cuda

SOURCE = Path(__file__).with_name("fake_gpu.cpp")
TINY = ["augment.crop=33", "model.width=4", "train.epochs=3", "train.batch_size=4", "attack.start=random"]
QUICK = ("ddcat bf16",)  # attacks from random starts, under autocast
SLOW = tuple(step for step in (*(f"{method} fp32" for method in get_args(MethodName)), "undefended bf16") if step not in QUICK)
Faults = Callable[[tuple[str, ...]], dict[str, str | None]]


def compiled_gpu() -> Path:
    """Compile the fake GPU, once for each torch: it takes long. Raises OSError, CalledProcessError."""
    root = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["c++", "-shared", "-fPIC", "-std=c++20", abi, f"-I{root}/include"]
    libraries = [f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"]
    key = hashlib.sha256(repr((command, libraries, torch.__version__)).encode() + SOURCE.read_bytes()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddcat" / "tests"
    library, unfinished = folder / f"fake-gpu-{key[:16]}.so", folder / f"fake-gpu-{key[:16]}.{os.getpid()}"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, str(SOURCE), "-o", str(unfinished), *libraries], check=True, capture_output=True, text=True)
        unfinished.replace(library)
    return library


@pytest.fixture(scope="module")
def faults(tiny_scenes: Path) -> Faults:
    """Give the fault of each of some steps and of each planted one, found in a process in which nothing was computed before."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the tests on it say more")
    try:
        library = compiled_gpu()
    except (OSError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"no C++ compiler is here that compiles with torch's headers: {cause}")

    @functools.cache
    def found(steps: tuple[str, ...]) -> dict[str, str | None]:
        lines = [*steps, *(f"planted {name}" for name in fake_cuda.PLANTED)]
        command = [sys.executable, str(Path(fake_cuda.__file__)), json.dumps([f"data.root={tiny_scenes}", *TINY]), *lines]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return dict(json.loads(line) for line in done.stdout.splitlines())

    return found


@pytest.mark.parametrize("step", [*QUICK, *(pytest.param(step, marks=pytest.mark.slow) for step in SLOW)])
def test_a_step_is_right_on_cuda_tensors(step: str, faults: Faults) -> None:
    assert faults(QUICK if step in QUICK else SLOW)[step] is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("another device", "found at least two devices, cuda:0 and cpu"),
        ("a value that is looked at", "DataDependentOutputException"),
        ("a copy to the host", "copies from the GPU to the host"),
        ("a mask as an index", "DynamicOutputShapeException"),
        ("a generator of the CPU", "draws on cuda:0 with a generator of cpu"),
    ],
)
def test_a_planted_fault_is_caught(name: str, fault: str, faults: Faults) -> None:
    found = faults(QUICK)
    assert fault in str(found[f"planted {name}"])
    assert found["planted nothing"] is None
