"""OpenVINO on a CPU."""

import os
import queue
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov  # type: ignore[import-untyped]

from ddcat.bundle import Bundle
from ddcat.choices import Precision
from ddcat.engines.base import CheckedEngine, Closable, Outputs, memory_file
from ddcat.engines.checks import check_names, check_precision
from ddcat.engines.cores import physical_cores
from ddcat.engines.errors import EngineError
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import TensorEntry

__all__ = ["DEVICE", "HINT", "OpenVinoGraph", "cache_folder", "check_possible", "load"]

DEVICE = "CPU"
HINT = "latency"  # all threads compute one batch
# The type of the float layers of a graph. It must be set: by default OpenVINO takes bf16 wherever the CPU has it. Under "f32" a
# graph that has bf16 in it computes in that where it says so, and in fp32 elsewhere.
_FLOATS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_PRECISIONS: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
# Layers of one size each that are kept ready for when that size comes again: by default 5000, which is gigabytes where every
# image has a size of its own. After 300 sizes of a small ConvNeXt (ResNet-10) these are 34 (24) MiB, 64 would be 69 (51), and
# 5000 over 1100 (1500). One size alone needs none; where two alternate, each takes 2.5 (1.4) times as long, 2.3 (1.1) with 64.
_KEPT_LAYERS = 32
_PRODUCTS = ("FullyConnected", "MatMul")  # layers of OpenVINO that compute as convolutions do
_DTYPES: dict[str, Literal["uint8", "float32"]] = {"u8": "uint8", "f32": "float32"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


class OpenVinoGraph(Closable):
    """
    An ONNX file compiled for a CPU: a `LoadedGraph`.

    Parameters
    ----------
    content : bytes
        The ONNX file. Input `image`: uint8 (N, H, W, 3); outputs have the names of `Outputs`.
    precision : Precision
    threads : int, optional
        Default: the physical cores.
    streams : int
        Threads that may call `run` at the same time; each is given its share of the threads.
    cache : Path, optional
        A folder for compiled models that no other user can write to.

    Raises
    ------
    EngineError
        Where OpenVINO does not load it, or another precision is in effect.
    """

    def __init__(
        self, content: bytes, *, precision: Precision, threads: int | None = None, streams: int = 1, cache: Path | None = None
    ) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": HINT.upper(),
            "INFERENCE_NUM_THREADS": physical_cores() if threads is None else threads,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_LAYERS,
        }
        if streams > 1:
            settings["NUM_STREAMS"] = streams
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        core = ov.Core()
        try:
            with memory_file(content) as file:
                model = core.read_model(file)
            typed = any(output.get_element_type() == ov.Type.bf16 for node in model.get_ops() for output in node.outputs())
            floats = "f32" if typed else _FLOATS[precision]
            settings["INFERENCE_PRECISION_HINT"] = floats
            self.inputs = tuple(map(_entry, model.inputs))
            self.outputs = tuple(map(_entry, model.outputs))
            compiled = core.compile_model(model, DEVICE, settings)
        except RuntimeError as cause:
            raise EngineError(f"OpenVINO does not load the graph: {_reason(cause)}") from cause
        self._names = [entry.name for entry in self.outputs]
        check_names([entry.name for entry in self.inputs], self._names)
        check_precision(_precision(compiled, typed=typed), precision, "OpenVINO")
        self._compiled: Any = compiled
        self._streams = streams
        self._requests: queue.SimpleQueue[Any] | None = self._new_requests()
        self.description: Mapping[str, str | int | bool] = {
            "runtime": f"openvino {ov.get_version()}",
            "provider": DEVICE,
            "precision": precision,
            "float_precision": floats,
            "hint": HINT,
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": compiled.get_property("NUM_STREAMS"),
            "pinning": compiled.get_property("ENABLE_CPU_PINNING"),
            "cache": cache is not None,
        }

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """Run the graph: see `LoadedGraph.run`."""
        if (requests := self._requests) is None:
            raise EngineError("the engine is closed")
        if images.dtype != np.uint8:  # it would be converted without a word
            raise EngineError(f"OpenVINO failed on images of {images.dtype}: use uint8")
        request = requests.get()
        try:
            # shared, its shape is checked; when it is copied, a wrong one gives empty outputs without a word
            results = request.infer({"image": np.ascontiguousarray(images)}, share_inputs=True)
        except RuntimeError as cause:
            raise EngineError(f"OpenVINO failed on images of shape {images.shape}: {_reason(cause)}") from cause
        finally:
            requests.put(request)
        return Outputs(**{name: results[name] for name in self._names})

    def rest(self) -> None:
        """Free the memory of intermediate maps, and the last images, which a request keeps: see `Engine.rest`."""
        if self._compiled is not None:
            self._requests = self._new_requests()
            self._compiled.release_memory()

    def close(self) -> None:
        """Free the compiled model."""
        self._requests = self._compiled = None

    def _new_requests(self) -> "queue.SimpleQueue[Any]":
        """Create a request for each stream: a request serves one thread at a time."""
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._streams):
            requests.put(self._compiled.create_infer_request())
        return requests


def check_possible(precision: Precision) -> None:
    """Raise EngineError for a precision that this CPU does not compute in."""
    capabilities = ov.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in capabilities:
        possible = [name for name, capability in _CAPABILITIES.items() if capability in capabilities]
        raise EngineError(
            f"OpenVINO does not compute in {precision} on this CPU, which lacks the instructions, only in "
            f"{' and '.join(possible)}"
        )


def load(bundle: Bundle, *, threads: int | None = None, streams: int = 1) -> CheckedEngine:
    """Load a verified bundle: see `ddcat.engines.open_engine`."""
    entry = bundle.manifest.engine
    check_possible(entry.effective_precision)
    content = bundle.files[entry.file]
    cache = cache_folder(content)
    graph = OpenVinoGraph(content, precision=entry.effective_precision, threads=threads, streams=streams, cache=cache)
    return CheckedEngine(graph, bundle.manifest)


def cache_folder(content: bytes) -> Path | None:
    """
    Return the folder for the compiled forms of a graph, in the user's own cache.

    OpenVINO finds a form by a short hash that is no protection, and runs it unchecked. So every graph has a folder of its own,
    named by its SHA-256: no bundle can leave a form that another bundle would run.

    Parameters
    ----------
    content : bytes
        The ONNX file.

    Returns
    -------
    Path, or None where no folder can be made there.

    Raises
    ------
    EngineError
        Where other users can write to it.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "ddcat" / "openvino" / sha256_of_bytes(content)
        for made in (folder.parent.parent, folder.parent, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the second: a user without a home
        return None
    for made in (folder.parent.parent, folder.parent, folder):
        status = made.stat()
        if status.st_mode & 0o022 or status.st_uid != os.getuid():
            raise EngineError(
                f"{made} keeps compiled models, but other users can write to it: remove it, or change its permissions"
            )
    return folder


def _precision(compiled: Any, *, typed: bool) -> str:
    """
    Return the precision in effect: the requested one is only a hint.

    It is that of most convolutions. A graph with types of its own may keep most of its nodes in fp32: there a single kernel in
    bf16 shows that the types are kept to.
    """
    kernels: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        kind = str(about["layerType"].astype(str))
        precision = str(about["runtimePrecision"].astype(str))
        precision = _PRECISIONS.get(precision, precision)
        convolutions[precision] += "Convolution" in kind
        kernels[precision] += kind in _PRODUCTS or "Convolution" in kind
    if typed:
        return "bf16" if kernels["bf16"] else "fp32"
    if convolutions["int8"] and convolutions.most_common(1)[0][0] == "int8":
        return "int8"
    floats = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return _PRECISIONS.get(floats, floats)


def _entry(port: Any) -> TensorEntry:
    dtype = _DTYPES.get(port.element_type.get_type_name())
    if dtype is None:
        raise EngineError(f"{port.any_name} is {port.element_type}; a segmenter's inputs and outputs are uint8 and float32")
    shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorEntry(name=port.any_name, dtype=dtype, shape=shape)


def _reason(error: RuntimeError) -> str:
    # the first lines are places in its source
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check '"))), lines[0] if lines else "?")
