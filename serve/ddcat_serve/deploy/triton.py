"""
`ddcat triton`: writing a bundle as a model repository for NVIDIA Triton.

- NAME: the engine's own file with Triton's backend for it, with dynamic batching, queue limits and warm-up;
- NAME with `--model-config-name=python`: the same inputs and outputs by Triton's Python backend and ddcat's engine, for a
  Triton without that backend, and for comparison;
- NAME-file: an ensemble from the bytes of an image file to those of a palette PNG, by NAME-decode and NAME-encode.

The Python parts import ddcat_serve, so that images are decoded and resized, and masks encoded, as by ddcat's own server.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ddcat.atomic_files import atomic_directory, write_bytes
from ddcat.bundle import MANIFEST, Bundle
from ddcat.engines import open_engine
from ddcat.manifest import InputShapes, TensorEntry
from ddcat_serve.errors import ServeError

__all__ = ["write_repository"]

_CONFIG, _PYTHON = "config.pbtxt", "configs/python.pbtxt"
_BACKENDS = {"ort": ("onnxruntime", "model.onnx"), "trt": ("tensorrt", "model.plan")}  # and its file name
_TYPES = {"uint8": pb.TYPE_UINT8, "float32": pb.TYPE_FP32}
_MOST_IMAGES = 8
_QUEUE, _PATIENCE_US, _DELAY_US = 64, 2_000_000, 2_000


def write_repository(bundle: Bundle, out: Path) -> list[Path]:
    """
    Write a repository into a new or empty folder, of an engine that has the tensors its manifest says; return its files,
    relative to `out`.

    ServeError for another engine than ort and trt; EngineError if it does not open, or has other tensors.
    """
    engine = bundle.manifest.engine
    if engine.name == "trt-rtx":
        raise ServeError(
            f"{bundle.path} holds a plan of TensorRT for RTX, and Triton's backend loads those of TensorRT alone: use ddcat "
            f"serve {bundle.path}, or ddcat export {bundle.path} --engine trt on the machine with the GPU"
        )
    if engine.name not in _BACKENDS:
        raise ServeError(
            f"{bundle.path} has an engine that Triton does not run ({engine.name}): use ddcat export {bundle.path} "
            "--engine ort or trt"
        )
    with atomic_directory(out) as aside:
        for place, content in _contents(bundle):
            write_bytes(aside / place, content)
        with open_engine(bundle, threads=1):
            pass  # it opens, with the tensors of the manifest
    return sorted(file.relative_to(out) for file in out.rglob("*") if file.is_file())


def _contents(bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    name, engine = bundle.manifest.name, bundle.manifest.engine
    backend, file = _BACKENDS[engine.name]
    yield f"{name}/{_CONFIG}", _text(_model(bundle, backend, file))
    yield f"{name}/{_PYTHON}", _text(_model(bundle, "python", "model.py"))
    yield f"{name}/1/{file}", bundle.files[engine.file]
    yield f"{name}/1/model.py", _program("engine")
    for part in ("decode", "encode"):
        yield f"{name}-{part}/{_CONFIG}", _text(_step(name, part, bundle.manifest.preprocessing.channels))
        yield f"{name}-{part}/1/model.py", _program(part)
    yield f"{name}-file/{_CONFIG}", _text(_ensemble(name))
    yield f"{name}-file/1/.keep", b""
    # the Python parts read classes and sizes from the manifest; an engine opens from the whole bundle
    for place, content in {MANIFEST: bundle.manifest.to_bytes(), **bundle.files}.items():
        yield f"{name}/bundle/{place}", content
    for part in ("decode", "encode"):
        yield f"{name}-{part}/{MANIFEST}", bundle.manifest.to_bytes()


def _model(bundle: Bundle, backend: str, file: str) -> pb.ModelConfig:
    manifest, shapes = bundle.manifest, bundle.manifest.shapes
    config = pb.ModelConfig(name=manifest.name, backend=backend, default_model_filename=file, max_batch_size=_most(shapes))
    config.input.extend([pb.ModelInput(name=e.name, data_type=_TYPES[e.dtype], dims=_dims(e)) for e in manifest.inputs])
    config.output.extend([pb.ModelOutput(name=e.name, data_type=_TYPES[e.dtype], dims=_dims(e)) for e in manifest.outputs])
    # never KIND_AUTO: a graph that was tested on a CPU would run on any GPU; a Python part selects its device itself
    on_cpu = backend == "python" or manifest.engine.provider == "CPUExecutionProvider"
    kinds = pb.ModelInstanceGroup
    config.instance_group.add(count=1, kind=kinds.KIND_CPU if on_cpu else kinds.KIND_GPU)
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = _DELAY_US
    policy = batching.default_queue_policy
    policy.timeout_action, policy.default_timeout_microseconds = pb.ModelQueuePolicy.REJECT, _PATIENCE_US
    policy.allow_timeout_override, policy.max_queue_size = True, _QUEUE
    for height, width in shapes.sizes or [(shapes.height.minimum, shapes.width.minimum)]:
        warm = config.model_warmup.add(name=f"{height}x{width}", batch_size=max(1, shapes.batch.minimum))
        warm.inputs["image"].CopyFrom(
            pb.ModelWarmup.Input(data_type=pb.TYPE_UINT8, dims=[height, width, manifest.preprocessing.channels], zero_data=True)
        )
    return config


def _step(name: str, part: str, channels: int) -> pb.ModelConfig:
    """Configure decoding or encoding, one file at a time: a batch would need images of one size."""
    config = pb.ModelConfig(name=f"{name}-{part}", backend="python", max_batch_size=0)
    image, size = {"data_type": pb.TYPE_UINT8, "dims": [1, -1, -1, channels]}, {"data_type": pb.TYPE_INT32, "dims": [2]}
    if part == "decode":
        config.input.add(name="file", data_type=pb.TYPE_STRING, dims=[1])
        config.output.add(name="image", **image)
        config.output.add(name="size", **size)
    else:
        config.input.add(name="labels", data_type=pb.TYPE_UINT8, dims=[1, -1, -1])
        config.input.add(name="size", **size)
        config.output.add(name="mask", data_type=pb.TYPE_STRING, dims=[1])
    config.instance_group.add(count=2, kind=pb.ModelInstanceGroup.KIND_CPU)
    return config


def _ensemble(name: str) -> pb.ModelConfig:
    config = pb.ModelConfig(name=f"{name}-file", platform="ensemble", max_batch_size=0)
    config.input.add(name="file", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="mask", data_type=pb.TYPE_STRING, dims=[1])
    steps: tuple[tuple[str, Mapping[str, str], Mapping[str, str]], ...] = (
        (f"{name}-decode", {"file": "file"}, {"image": "image", "size": "size"}),
        (name, {"image": "image"}, {"labels": "labels"}),
        (f"{name}-encode", {"labels": "labels", "size": "size"}, {"mask": "mask"}),
    )
    for model, inputs, outputs in steps:
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    return config


def _text(config: pb.ModelConfig) -> bytes:
    text: str = text_format.MessageToString(config)
    return text.encode()


def _program(part: str) -> bytes:
    return files("ddcat_serve.deploy").joinpath("triton_programs", f"{part}.py").read_bytes()


def _dims(entry: TensorEntry) -> list[int]:
    """Return the shape without the batch, which Triton adds."""
    return [size if isinstance(size, int) else -1 for size in entry.shape[1:]]


def _most(shapes: InputShapes) -> int:
    return max(shapes.batch.minimum, min(_MOST_IMAGES, shapes.batch.maximum or _MOST_IMAGES))
