"""What can be said of a model repository without a Triton: it parses, and it is what the engine's file is."""

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat.manifest import InputShapes, TensorEntry
from ddcat_serve.errors import ServeError

__all__ = ["check"]

_TYPES = {pb.TYPE_UINT8: "uint8", pb.TYPE_FP32: "float32"}


def check(bundle: Bundle, repository: Path) -> None:
    """
    Read each configuration with Triton's protobuf, and hold the model's tensors against those that the runtime states.

    Raises
    ------
    ServeError
        Naming the file.
    """
    with open_engine(bundle, threads=1) as engine:
        stated = {"input": engine.inputs, "output": engine.outputs}
    for file in sorted(repository.rglob("*.pbtxt")):
        try:
            config = text_format.Parse(file.read_text(encoding="utf-8"), pb.ModelConfig())
        except text_format.ParseError as cause:
            raise ServeError(f"{file} is not a configuration of a model: {cause}") from cause
        folder = file.parent.parent.name if file.parent.name == "configs" else file.parent.name
        if config.name != folder:
            raise ServeError(f"{file} names the model {config.name}, and lies in {folder}")
        if config.name == bundle.manifest.name:
            _compare(stated, bundle.manifest.shapes, config, file)


def _compare(stated: Mapping[str, tuple[TensorEntry, ...]], shapes: InputShapes, config: pb.ModelConfig, file: Path) -> None:
    for kind, entries in stated.items():
        named = {tensor.name: tensor for tensor in getattr(config, kind)}
        if list(named) != [entry.name for entry in entries]:
            raise ServeError(f"{file} has the {kind}s {list(named)}; the engine's file has {[e.name for e in entries]}")
        for entry in entries:
            tensor = named[entry.name]
            if _TYPES.get(tensor.data_type) != entry.dtype:
                raise ServeError(f"{file}: {kind} {entry.name} is not {entry.dtype}, as in the engine's file")
            dims = [size if isinstance(size, int) else -1 for size in entry.shape[1:]]  # Triton adds the batch
            if list(tensor.dims) != dims:
                raise ServeError(f"{file}: {kind} {entry.name} has dims {list(tensor.dims)}; the engine's file has {dims}")
    if config.max_batch_size not in shapes.batch:
        raise ServeError(f"{file} batches {config.max_batch_size} images, which the engine does not take")
