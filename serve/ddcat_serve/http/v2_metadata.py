"""Metadata that the Open Inference Protocol and Triton's clients ask for: server, models, configuration, index, statistics."""

import itertools
from typing import Any

from ddcat import __version__
from ddcat.manifest import TensorEntry
from ddcat_serve.errors import RequestError
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.http.v2_protocol import DATATYPES
from ddcat_serve.inference.model_registry import Models, find_model
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["LOADING", "model_config", "model_metadata", "model_statistics", "repository_index", "server_metadata"]

LOADING = "models are neither loaded nor unloaded while the server runs: start it with --repository FOLDER and --api-key"
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]


def server_metadata(state: ServerState) -> dict[str, Any]:
    """Return the response of GET /v2."""
    loads = state.repository is not None and state.repository.refusal is None
    return {
        "name": "ddcat",
        "version": __version__,
        "extensions": [*_EXTENSIONS, "model_repository"] if loads else _EXTENSIONS,
        "parameters": {"settings": state.settings.public()},
    }


def model_metadata(models: Models, model: ServedModel) -> dict[str, Any]:
    """
    Return the response of GET /v2/models/NAME.

    Beyond the protocol, `parameters` has the model's origin, classes, engine and passport.
    """
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "versions": list(models[model.name]),
        "platform": f"ddcat_{manifest.engine.name}",
        "inputs": [_tensor_metadata(entry, model) for entry in model.engine.inputs],
        "outputs": [_tensor_metadata(entry, model) for entry in model.engine.outputs],
        "parameters": {
            **model.describe(),
            "preprocessing": {
                **manifest.preprocessing.model_dump(mode="json"),
                "by": "the graph itself: (image / 255 - mean) / std. Image files sent to /v1/segment are turned and resized by "
                "the server, tensors by the client: ddcat.preprocess does it",
            },
            "shapes": manifest.shapes.model_dump(mode="json"),
            "engine": dict(model.engine.description),
        },
    }


def model_config(models: Models, model: ServedModel) -> dict[str, Any]:
    """Return a model's configuration in Triton's form: `dims` lack the batch, unless it is unbounded (`max_batch_size` 0)."""
    metadata = model_metadata(models, model)
    batch = model.bundle.manifest.shapes.batch.maximum
    tensors = {
        kind: [
            {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][batch is not None :]}
            for tensor in metadata[f"{kind}s"]
        ]
        for kind in ("input", "output")
    }
    return {"name": model.name, "platform": metadata["platform"], "backend": "ddcat", "max_batch_size": batch or 0, **tensors}


def repository_index(state: ServerState, *, ready: bool = False) -> list[dict[str, str]]:
    """
    List all versions of all models; with `ready` only those that accept requests.

    Reads the repository's folder, if there is one: call it in a thread.
    """
    states = [(model, model.ready and not state.draining) for model in state.served]
    silent = [] if ready or state.repository is None else state.repository.list_silent()
    answering = [
        {
            "name": model.name,
            "version": model.version,
            "state": "READY" if takes else "UNAVAILABLE",
            "reason": "" if takes else model.worker.state if not state.draining else "stopping",
        }
        for model, takes in states
        if takes or not ready
    ]
    return answering + [listed._asdict() for listed in silent]


def model_statistics(state: ServerState, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return the statistics of one version of a model, of all of its versions, or of all models; RequestError (404)."""
    if name is None and version is not None:
        raise RequestError(400, "a version is named without its model: name both")
    if name is None:
        chosen = state.served
    elif version is None:
        find_model(state.models, name)
        chosen = list(state.models[name].values())
    else:
        chosen = [find_model(state.models, name, version)]
    return {"model_stats": [model.usage.statistics(model.name, model.version) for model in chosen]}


def _tensor_metadata(entry: TensorEntry, model: ServedModel) -> dict[str, Any]:
    """Return name, type and shape; -1 for a dynamic axis, which runtimes do not describe further."""
    shapes = model.bundle.manifest.shapes
    axes = [shapes.batch]
    if entry.name != "logits":  # logits may have a lower resolution
        axes += [shapes.height, shapes.width]
    fixed = [axis.minimum if axis.minimum == axis.maximum else -1 for axis in axes]
    shape = [size if isinstance(size, int) else free for size, free in itertools.zip_longest(entry.shape, fixed, fillvalue=-1)]
    return {"name": entry.name, "datatype": DATATYPES[entry.dtype], "shape": shape}
