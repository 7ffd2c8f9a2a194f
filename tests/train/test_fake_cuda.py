"""CUDA's half of training, on a machine without a GPU: devices, waits and generators of every method's step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from ddcat_train.choices import MethodName
from tests.train import fake_cuda

SOURCE = Path(__file__).with_name("fake_gpu.cpp")
TINY = ["augment.crop=33", "model.width=4", "train.epochs=3", "train.batch_size=4", "attack.start=random"]
STEPS = [*(f"{method} fp32" for method in get_args(MethodName)), "undefended bf16", "ddcat bf16"]


def compile_gpu(folder: Path) -> Path:
    """Compile the fake GPU, in seconds. Raises FileNotFoundError, CalledProcessError."""
    root, library = Path(torch.__file__).parent, folder / "fake_gpu.so"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["c++", "-shared", "-fPIC", "-std=c++20", abi, f"-I{root}/include", str(SOURCE), "-o", str(library)]
    libraries = [f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, *libraries], check=True, capture_output=True, text=True)
    return library


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory, tiny_scenes: Path) -> dict[str, str | None]:
    """The fault of each step and of each planted one, found in a process in which nothing was computed before."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the tests on it say more")
    try:
        library = compile_gpu(tmp_path_factory.mktemp("gpu"))
    except (FileNotFoundError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"no C++ compiler is here that compiles with torch's headers: {cause}")
    lines = [*STEPS, *(f"planted {name}" for name in fake_cuda.PLANTED)]
    command = [sys.executable, str(Path(fake_cuda.__file__)), json.dumps([f"data.root={tiny_scenes}", *TINY]), *lines]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_right_on_cuda_tensors(step: str, faults: dict[str, str | None]) -> None:
    assert faults[step] is None


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
def test_a_planted_fault_is_caught(name: str, fault: str, faults: dict[str, str | None]) -> None:
    assert fault in str(faults[f"planted {name}"])
    assert faults["planted nothing"] is None
