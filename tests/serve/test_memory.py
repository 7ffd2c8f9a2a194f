"""Large blocks go back to the system: in a process of its own, since the C library remembers what it was told."""

import asyncio
import mmap
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle
from ddcat_serve.http import app
from ddcat_serve.inference import memory
from ddcat_serve.inference.memory import measure_cost, memory_limit
from tests.bundles import small_graph
from tests.serve.processes import introduced

PROGRAM = """
import sys
import numpy as np
from ddcat_serve.inference.memory import tune_malloc

def resident_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))

if sys.argv[1] == "told":
    assert tune_malloc()
np.ones(24 * 2**20, np.uint8)  # one large image, which is done
before = resident_bytes()
kept = []
for _ in range(10):
    large = np.ones(12 * 2**20, np.uint8)
    kept.append(np.ones(900_000, np.uint8))  # something small that stays behind it
    del large
print(resident_bytes() - before - 10 * 900)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_given_back() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)
        for how in ("left alone", "told")
    }
    assert found["told"] < 2 * 1024  # KiB
    assert found["left alone"] > 8 * 1024  # else this shows nothing


SIZES = """
import random, sys
from pathlib import Path
import numpy as np
from ddcat.bundle import open_bundle
from ddcat.engines import open_engine
from ddcat_serve.inference.memory import tune_malloc, resident_bytes

tune_malloc()
engine = open_engine(open_bundle(Path(sys.argv[1])), threads=1)

def infer(height, width, images=1):
    engine.infer(np.zeros((images, height, width, 3), np.uint8))

infer(16, 16)
engine.rest()
before = resident_bytes()
infer(640, 640, 4)
large = resident_bytes()
engine.rest()
print((large - before) >> 20, (resident_bytes() - before) >> 20)
random.seed(0)
for _ in range(3):
    for _ in range(150):
        infer(random.randint(8, 400), random.randint(8, 400))
    engine.rest()
    print(resident_bytes() >> 20)
"""


@pytest.mark.parametrize("runtime", ["ort", pytest.param("openvino", marks=pytest.mark.slow)])
def test_an_engine_that_rests_gives_memory_back_and_keeps_none_for_every_size(
    runtime: str, build: Callable, deep_graph: bytes
) -> None:
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[runtime])
    path = build(deep_graph, runtime).path
    found = subprocess.run([sys.executable, "-c", SIZES, str(path)], capture_output=True, text=True, check=True).stdout.split()
    taken, left, first, _, last = map(int, found)
    assert taken > 100  # MiB; else this shows nothing
    assert left < 0.25 * taken
    assert last < 1.1 * first


@pytest.fixture
def deep_graph() -> bytes:
    """The small segmenter behind a convolution of 32 channels, whose maps take some memory."""
    graph = onnx.load_from_string(small_graph())
    (convolution,) = [node for node in graph.graph.node if node.op_type == "Conv"]
    weight = np.zeros((32, 3, 3, 3), np.float32)
    weight[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    back = np.eye(3, 32, dtype=np.float32)[..., None, None]
    place = list(graph.graph.node).index(convolution)
    for node in (
        onnx.helper.make_node("Conv", ["wide", "back"], ["narrow"]),
        onnx.helper.make_node("Conv", ["planes", "spread"], ["wide"], pads=[1, 1, 1, 1]),
    ):
        graph.graph.node.insert(place, node)
    convolution.input[0] = "narrow"
    graph.graph.initializer.extend([onnx.numpy_helper.from_array(weight, "spread"), onnx.numpy_helper.from_array(back, "back")])
    content: bytes = graph.SerializeToString()
    return content


def test_the_limit_of_a_control_group_is_found_wherever_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    machine = memory_limit()
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "outer" / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    assert memory_limit() == 123456789
    (tmp_path / "cgroup").write_text("4:cpu:/outer/inner\n3:memory:/one\n")
    assert memory_limit() == machine
    (tmp_path / "memory" / "one").mkdir(parents=True)
    (tmp_path / "memory" / "one" / "memory.limit_in_bytes").write_text("2345678\n")
    assert memory_limit() == 2345678


def test_a_system_that_tells_nothing_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "none")
    assert memory_limit() > 0
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a C library without these calls
    assert (memory.tune_malloc(), memory.trim_malloc()) == (False, False)
    monkeypatch.setattr(memory, "Path", lambda text: tmp_path / "none")
    assert memory.resident_bytes() == 0


def test_what_a_call_takes_for_a_while_is_seen() -> None:
    def call() -> None:
        with mmap.mmap(-1, 64 * 2**20) as some:
            some.write(b"x" * len(some))
            time.sleep(0.05)

    assert 60 * 2**20 < measure_cost(call).bytes < 200 * 2**20


FREE_BLOCKS = """
import ctypes
from ddcat_serve.inference.memory import trim_malloc, resident_bytes

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [library.malloc(2**16) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 2**16)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
    library.free(block)
before = resident_bytes()
assert trim_malloc()
print(before - resident_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_free_memory_between_blocks_in_use_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREE_BLOCKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50 * 2**20


def test_a_server_gives_back_what_a_burst_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 100

    def give_back() -> None:
        nonlocal taken
        given.append(taken)
        taken = max(taken - 60, 100)  # of the burst, some is in use for a while

    given: list[int] = []
    monkeypatch.setattr(app, "_TRIM_INTERVAL", 0.001)
    monkeypatch.setattr(app, "resident_bytes", lambda: taken * 2**20)
    monkeypatch.setattr(app, "trim_malloc", give_back)

    async def burst() -> None:
        nonlocal taken
        tidying = asyncio.create_task(app._trim_memory())
        await asyncio.sleep(0.02)
        taken = 200
        while taken > 100:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        tidying.cancel()

    asyncio.run(asyncio.wait_for(burst(), 10))
    assert given == [200, 140]


@pytest.mark.parametrize(("said", "found"), [(None, "0"), ("7", "7")])
def test_a_server_keeps_no_kernels_of_onednn_unless_it_is_told_to(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, said: str | None, found: str
) -> None:
    """Before an engine is opened: oneDNN reads it once."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    if said is not None:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", said)
    tell = """
import os
import ddcat_serve.inference.model_registry
open_engine = ddcat_serve.inference.model_registry.open_engine
def tell(*given, **named):
    print(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY"), flush=True)
    return open_engine(*given, **named)
ddcat_serve.inference.model_registry.open_engine = tell
"""
    with introduced(bundle.path, before=tell) as (_, _, lines):
        assert lines[0].strip() == found
