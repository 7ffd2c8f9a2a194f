"""The Open Inference Protocol, version 2: what it means, whether it comes as JSON or over gRPC."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ddcat import __version__
from ddcat.manifest import TensorEntry
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.inference.model_registry import Models, ServedModel
from ddcat_serve.settings import Settings

__all__ = [
    "DATATYPES",
    "ROOM",
    "RequestedOutput",
    "check_flag",
    "check_image",
    "check_input_parameters",
    "model_metadata",
    "server_metadata",
    "timeout_of",
    "wanted_outputs",
]

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
ROOM = 2**16  # bytes of a request beside the data of its tensor
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_SHARED = "shared_memory"  # begins the names of its parameters

Parameters = Mapping[str, Any]


class RequestedOutput(NamedTuple):
    """An output that a client wants, and what it says of it."""

    name: str
    parameters: Parameters


def check_image(datatype: str, shape: list[int], max_pixels: int) -> None:
    """
    Refuse what cannot be a batch of images.

    Raises
    ------
    RequestError
        400, or 413 for too many pixels.
    """
    if datatype != "UINT8":
        raise RequestError(400, f"image has datatype {quoted(datatype)}; the model takes UINT8")
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise RequestError(400, f"image has shape {quoted(shape)}; the model takes [N, H, W, 3]")
    if math.prod(shape[:3]) > max_pixels:
        raise RequestError(413, f"image of shape {quoted(shape)} has more than {max_pixels} pixels")


def check_input_parameters(parameters: Parameters) -> None:
    """Refuse, with 400, an input whose data lies where this server does not look."""
    for name in parameters:
        if name.startswith(_SHARED):
            raise RequestError(400, f"image has the parameter {quoted(name)}: no shared memory is read; send its data")


def check_flag(name: str, value: Any) -> bool:
    """Return a parameter that is true or false; 400 for anything else."""
    if not isinstance(value, bool):
        raise RequestError(400, f"{name} is {quoted(value)}; expected true or false")
    return value


def wanted_outputs(model: ServedModel, outputs: Sequence[RequestedOutput]) -> list[TensorEntry]:
    """
    Return the outputs that are asked for, or all where none is.

    Raises
    ------
    RequestError
        400 for an output that the model has not, and for a parameter that would change the answer.
    """
    entries = {entry.name: entry for entry in model.engine.outputs}
    for output in outputs:
        if output.name not in entries:
            raise RequestError(400, f"the model has no output {quoted(output.name)}; it has {', '.join(entries)}")
        for name, value in output.parameters.items():
            _check_output_parameter(output.name, name, value)
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise RequestError(400, "an output is requested twice: request each once")
    return [entries[name] for name in names or entries]


def timeout_of(parameters: Parameters, settings: Settings) -> float:
    """
    Read the seconds in which an answer is wanted, which the protocol's clients give in microseconds; 0 asks for none.

    Raises
    ------
    RequestError
        400 where it is no such number, or more than may be asked for.
    """
    value, most = parameters.get("timeout", 0), 1e6 * settings.max_timeout
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise RequestError(400, f"timeout is {quoted(value)}; expected microseconds, at most {most:.0f}")
    return value / 1e6 if value else settings.timeout


def server_metadata(settings: Settings) -> dict[str, Any]:
    """Return the answer of GET /v2."""
    return {
        "name": "ddcat",
        "version": __version__,
        "extensions": _EXTENSIONS,
        "parameters": {"settings": settings.shown()},
    }


def model_metadata(models: Models, model: ServedModel) -> dict[str, Any]:
    """
    Return the answer of GET /v2/models/NAME.

    Beside the protocol's part, `parameters` holds what the manifest says about the model, and its passport.
    """
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "versions": list(models[model.name]),
        "platform": f"ddcat_{manifest.engine.name}",
        "inputs": [_tensor_metadata(entry, model) for entry in model.engine.inputs],
        "outputs": [_tensor_metadata(entry, model) for entry in model.engine.outputs],
        "parameters": {
            **model.about(),
            "preprocessing": {
                **manifest.preprocessing.model_dump(mode="json"),
                "by": "the graph itself: (image / 255 - mean) / std; send the pixels as they are",
            },
            "shapes": manifest.shapes.model_dump(mode="json"),
            "engine": dict(model.engine.description),
        },
    }


def _check_output_parameter(output: str, name: str, value: Any) -> None:
    if name == "binary_data":
        check_flag(name, value)
    elif name.startswith(_SHARED):
        raise RequestError(400, f"output {output} has the parameter {quoted(name)}: no shared memory is written; leave it out")
    elif name == "classification":
        if value != 0:  # 0 classes asks for the tensor itself
            raise RequestError(400, f"output {output} has the parameter {name!r} (class_count): leave it out for the tensor")
    else:
        raise RequestError(
            400, f"output {output} has the parameter {quoted(name)}, which this server does not know; leave it out"
        )


def _tensor_metadata(entry: TensorEntry, model: ServedModel) -> dict[str, Any]:
    """Return name, type and shape, -1 for what is free; runtimes forget what the free axes are."""
    shapes = model.bundle.manifest.shapes
    axes = [shapes.batch]
    if entry.name != "logits":  # which may be of a lower resolution
        axes += [shapes.height, shapes.width]
    fixed = [axis.minimum if axis.minimum == axis.maximum else -1 for axis in axes]
    shape = [size if isinstance(size, int) else free for size, free in itertools.zip_longest(entry.shape, fixed, fillvalue=-1)]
    return {"name": entry.name, "datatype": DATATYPES[entry.dtype], "shape": shape}
