"""ONNX Runtime, on a CPU or on a GPU."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from ddcat.bundle import Bundle
from ddcat.choices import Precision
from ddcat.engines.base import CheckedEngine, Closable, Outputs, memory_file, smallest_batch
from ddcat.engines.checks import check_names, check_precision
from ddcat.engines.cores import physical_cores
from ddcat.engines.errors import EngineError
from ddcat.error_text import first_line
from ddcat.extras import install
from ddcat.manifest import InputShapes, TensorEntry
from ddcat.temporary import temporary_directory

__all__ = ["CPU", "CUDA", "PROVIDERS", "OrtFile", "OrtGraph", "best_provider", "load", "open_checked", "run_once"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

PROVIDERS: dict[str, dict[str, str]] = {  # and their options
    CPU: {},
    CUDA: {
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search takes most of a second for every new shape
        "use_tf32": "0",  # fp32 means fp32
    },
}
_ARENAS = {CPU: "cpu:0", CUDA: "cpu:0;gpu:0"}
_DTYPES: dict[str, Literal["uint8", "float32"]] = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}

# On x86 it would turn signed activations into unsigned ones, leave some layers of a symmetric graph in fp32, and refuse others.
_SIGNED = ("session.qdqisint8allowed", "1")
_HEAVY = ("Conv", "MatMul", "Gemm")  # within the names of all kernels that take time: FusedConv, QLinearConv, ...
_KERNEL_PRECISIONS: dict[str, Precision] = {
    "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
}  # fmt: skip
_TOO_NEW = re.compile(r"Opset (\d+) is under development.* till opset (\d+)", re.DOTALL)
_SINCE = {22: "onnxruntime 1.21"}  # the first that reads an opset


class OrtGraph(Closable):
    """
    An ONNX file in a session: a `LoadedGraph`.

    Images and labels are in the host's memory, so binding them beforehand would save no copy with either provider.

    Parameters
    ----------
    content : bytes
        The ONNX file. Input `image`: uint8 (N, H, W, 3); outputs have the names of `Outputs`.
    provider : str
        `CPU` or `CUDA`.
    threads : int, optional
        Default: the physical cores.
    streams : int
        Threads that may call `run` at the same time.
    profile : Path, optional
        Prefix of a file that records everything that runs until `kernels` is called.

    Raises
    ------
    EngineError
        Where the runtime does not load it, or falls back to another provider.
    """

    def __init__(
        self,
        content: bytes,
        *,
        provider: str = CPU,
        threads: int | None = None,
        streams: int = 1,
        profile: Path | None = None,
    ) -> None:
        _check_provider(provider)
        threads = physical_cores() if threads is None else threads
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = max(1, threads - streams + 1)  # a thread that calls it computes, too
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads burn the neighbours' time
        options.add_session_config_entry(*_SIGNED)
        options.log_severity_level = 4  # what fails raises
        options.enable_mem_pattern = False  # it would keep a plan for every size that it ever saw
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            with memory_file(content) as file:
                session = onnxruntime.InferenceSession(file, options, providers=[(provider, PROVIDERS[provider])])
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime does not load the graph: {_reason(cause)}") from cause
        effective = session.get_providers()[0]
        if effective != provider:  # it falls back without a word
            raise EngineError(
                f"ONNX Runtime fell back to {effective} where {provider} was asked for: it finds no GPU, or CUDA and cuDNN of "
                "other major versions than its own"
            )
        self._session: Any = session
        self.inputs = tuple(_entry(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(_entry(tensor) for tensor in session.get_outputs())
        self._names = [entry.name for entry in self.outputs]
        check_names([entry.name for entry in self.inputs], self._names)
        self.description: Mapping[str, str | int | bool] = {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "provider": provider,
            **PROVIDERS[provider],
            "threads": threads,
            "streams": streams,
            "spinning": False,
            "optimization": "all",
            "arena": options.enable_cpu_mem_arena,
            "memory_pattern": options.enable_mem_pattern,
        }

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """Run the graph: see `LoadedGraph.run`."""
        if self._session is None:
            raise EngineError("the engine is closed")
        try:
            results: list[npt.NDArray[Any]] = self._session.run(None, {"image": images})
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime failed on images of shape {images.shape}: {first_line(cause)}") from cause
        return Outputs(**dict(zip(self._names, results, strict=True)))

    def rest(self) -> None:
        """
        Free the unused memory of the arena: see `Engine.rest`.

        Without an arena a call takes up to twice as long, because its memory comes from the system each time, page by page. The
        runtime shrinks the arena only at the end of a call; a call that ends before its first kernel is enough.
        """
        if self._session is None:
            return
        ending = onnxruntime.RunOptions()
        ending.log_severity_level = 4
        ending.add_run_config_entry("memory.enable_memory_arena_shrinkage", _ARENAS[str(self.description["provider"])])
        ending.terminate = True
        anything = np.zeros([size if isinstance(size, int) else 1 for size in self.inputs[0].shape], np.uint8)
        with contextlib.suppress(Exception):  # it fails, as it was told to
            self._session.run(None, {"image": anything}, ending)

    def kernels(self) -> list[dict[str, Any]]:
        """End the profile, and return its record of each kernel that was run."""
        file = Path(self._session.end_profiling())
        events: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event["args"]]

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OrtFile:
    """
    An ONNX file with any inputs and outputs, on the CPU.

    Parameters
    ----------
    content : bytes

    Raises
    ------
    EngineError
        Where the runtime does not load it.
    """

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(*_SIGNED)
        options.log_severity_level = 4  # what fails raises
        try:
            with memory_file(content) as file:
                self._session = onnxruntime.InferenceSession(file, options, providers=[CPU])
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime does not load the graph: {_reason(cause)}") from cause

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """
        Compute all outputs, by name.

        Raises
        ------
        EngineError
        """
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime does not run the graph: {first_line(cause)}") from cause


def run_once(content: bytes, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """
    Run an ONNX file with any outputs on the CPU, and return them by name.

    Raises
    ------
    EngineError
    """
    return OrtFile(content).run({"image": images})


def best_provider() -> str:
    """Return CUDA's provider where this onnxruntime has it, else the CPU's."""
    return CUDA if CUDA in onnxruntime.get_available_providers() else CPU


def load(bundle: Bundle, *, threads: int | None = None, streams: int = 1) -> CheckedEngine:
    """Load a verified bundle: see `ddcat.engines.open_engine`."""
    entry, shapes = bundle.manifest.engine, bundle.manifest.shapes
    content = bundle.files[entry.file]
    streams = streams if entry.provider == CPU else 1
    graph = open_checked(content, entry.provider, entry.effective_precision, shapes, threads, streams)
    return CheckedEngine(graph, bundle.manifest)


def open_checked(
    content: bytes, provider: str, precision: Precision, shapes: InputShapes, threads: int | None = None, streams: int = 1
) -> OrtGraph:
    """Open a graph, and check the kernels of one small batch: they alone show the provider and precision in effect."""
    with temporary_directory() as folder:
        graph = OrtGraph(content, provider=provider, threads=threads, streams=streams, profile=folder / "profile")
        graph.run(smallest_batch(shapes, int(graph.inputs[0].shape[3])))
        kernels = [kernel for kernel in graph.kernels() if any(name in kernel["op_name"] for name in _HEAVY)]
    elsewhere = Counter(kernel["provider"] for kernel in kernels if kernel["provider"] != provider)
    if elsewhere:
        (other, count), *_ = elsewhere.most_common(1)
        raise EngineError(
            f"ONNX Runtime computes {count} of {len(kernels)} convolutions and products with {other} where {provider} was "
            "asked for"
        )
    precisions = Counter(map(_precision, kernels)).most_common()
    check_precision(precisions[0][0] if precisions else "no", precision, "ONNX Runtime")
    graph.description = {**graph.description, "precision": precision}
    return graph


def _reason(cause: Exception) -> str:
    """Return why a graph is not loaded; for a graph that is too new, with the version that loads it."""
    opsets = _TOO_NEW.search(str(cause))
    if opsets is None:
        return first_line(cause)
    graph, newest = map(int, opsets.groups())
    needed = f"install {_SINCE[graph]} or newer" if graph in _SINCE else "install a newer one"
    return f"it is of opset {graph}, and onnxruntime {onnxruntime.__version__} reads ONNX up to opset {newest}: {needed}"


def _precision(kernel: Mapping[str, Any]) -> str:
    dtype: str = next(iter(kernel["input_type_shape"][0]))
    return _KERNEL_PRECISIONS.get(dtype, dtype)


def _check_provider(provider: str) -> None:
    available = onnxruntime.get_available_providers()
    if provider not in available or provider not in PROVIDERS:
        raise EngineError(
            f"this onnxruntime has no {provider}, only {', '.join(available)}: {install('gpu' if provider == CUDA else 'cpu')}"
        )
    if provider == CUDA:
        onnxruntime.preload_dlls()  # those of pip's packages, which the loader would not find


def _entry(tensor: Any) -> TensorEntry:
    if tensor.type not in _DTYPES:
        raise EngineError(f"{tensor.name} is a {tensor.type}; a segmenter's inputs and outputs are {', '.join(_DTYPES)}")
    return TensorEntry(
        name=tensor.name, dtype=_DTYPES[tensor.type], shape=tuple("?" if size is None else size for size in tensor.shape)
    )
