"""ONNX Runtime on a CPU."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from ddcat.bundle import Bundle
from ddcat.manifest import EngineEntry, Precision, Shapes, TensorEntry
from ddcat_serve.engines.base import Built, Images, Outputs, check_images, check_statement, physical_cores
from ddcat_serve.errors import EngineError

__all__ = ["PROVIDER", "OrtEngine", "OrtGraph", "build", "check_possible", "load", "open_graph"]

PROVIDER = "CPUExecutionProvider"

_DTYPES: dict[str, Literal["uint8", "float32"]] = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OrtGraph:
    """
    An ONNX file in a session, before anything is known about the sizes that it takes.

    Parameters
    ----------
    content : bytes
        The ONNX file. Input `image`: uint8 (N, H, W, 3); outputs `labels`: uint8 (N, H, W) and, if any, `logits`: float32
        (N, K, h, w).
    threads : int, optional
        The physical cores by default.
    """

    def __init__(self, content: bytes, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = physical_cores() if threads is None else threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads burn the neighbours' time
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(content, options, providers=[PROVIDER])
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime does not load the graph: {_first_line(cause)}") from cause
        provider = session.get_providers()[0]
        if provider != PROVIDER:  # it falls back without a word
            raise EngineError(f"ONNX Runtime chose {provider} where {PROVIDER} was asked for")
        self._session: Any = session
        self.inputs = tuple(_entry(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(_entry(tensor) for tensor in session.get_outputs())
        self.description: Mapping[str, str | int | bool] = {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "provider": provider,
            "threads": options.intra_op_num_threads,
            "spinning": False,
            "optimization": "all",
        }
        names = [entry.name for entry in self.outputs]
        if [entry.name for entry in self.inputs] != ["image"] or names not in (["labels"], ["labels", "logits"]):
            raise EngineError(
                f"the graph has inputs {[entry.name for entry in self.inputs]} and outputs {names}; "
                "a segmenter has input image and outputs labels and, if any, logits"
            )

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """
        Run the graph on whatever it is given.

        Parameters
        ----------
        images : (N, H, W, 3) uint8
            RGB.

        Raises
        ------
        EngineError
            Where the runtime refuses or fails.
        """
        if self._session is None:
            raise EngineError("the engine is closed")
        try:
            results: list[npt.NDArray[Any]] = self._session.run(None, {"image": images})
        except Exception as cause:  # its exceptions share no base
            raise EngineError(f"ONNX Runtime failed on images of shape {images.shape}: {_first_line(cause)}") from cause
        return Outputs(*results)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class OrtEngine(OrtGraph):
    """A graph together with the sizes that its bundle was checked with: an `Engine`."""

    def __init__(self, content: bytes, shapes: Shapes, *, precision: str, threads: int | None = None) -> None:
        super().__init__(content, threads=threads)
        self._shapes = shapes
        self.description = {**self.description, "precision": precision}

    def infer(self, images: Images) -> Outputs:
        """Segment a batch: see `Engine.infer`."""
        check_images(images, self._shapes)
        outputs = self.run(images)
        if outputs.labels.shape != images.shape[:3] or outputs.labels.dtype != np.uint8:
            raise EngineError(f"labels {outputs.labels.dtype} {outputs.labels.shape} came back for images {images.shape}")
        return outputs


def open_graph(content: bytes, *, threads: int | None = None) -> OrtGraph:
    """Load an ONNX file that belongs to no bundle yet; `run` is then checked against nothing."""
    return OrtGraph(content, threads=threads)


def check_possible(precision: Precision) -> None:
    """Refuse what cannot run: see `ddcat_serve.engines.check_possible`."""
    if precision not in ("fp32", "int8"):
        raise EngineError(f"ONNX Runtime does not compute in {precision} on a CPU, only in fp32 and int8")


def build(graph: bytes, *, file: str, precision: Precision, shapes: Shapes) -> Built:
    """Open a graph to find out what it is: see `ddcat_serve.engines.build_engine`."""
    with open_graph(graph) as opened:
        entry = EngineEntry(
            name="ort",
            file=file,
            graph=file,
            requested_precision=precision,
            effective_precision=precision,
            provider=str(opened.description["provider"]),
        )
        return Built({}, entry, opened.inputs, opened.outputs)


def load(bundle: Bundle, *, threads: int | None = None) -> OrtEngine:
    """Load a verified bundle: see `ddcat_serve.engines.open_engine`."""
    manifest = bundle.manifest
    engine = OrtEngine(
        bundle.files[manifest.engine.file], manifest.shapes, precision=manifest.engine.effective_precision, threads=threads
    )
    check_statement(engine.inputs, engine.outputs, manifest)
    if engine.description["provider"] != manifest.engine.provider:
        raise EngineError(
            f"{manifest.name} was checked with {manifest.engine.provider}, but runs with {engine.description['provider']}"
        )
    return engine


def _entry(tensor: Any) -> TensorEntry:
    if tensor.type not in _DTYPES:
        raise EngineError(f"{tensor.name} is a {tensor.type}; a segmenter's inputs and outputs are {', '.join(_DTYPES)}")
    return TensorEntry(
        name=tensor.name, dtype=_DTYPES[tensor.type], shape=tuple("?" if size is None else size for size in tensor.shape)
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
