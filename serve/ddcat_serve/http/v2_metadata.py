"""What clients of Triton ask beside the protocol: a model's configuration, the index of the models, and their statistics."""

from typing import Any

from ddcat_serve.errors import RequestError
from ddcat_serve.http.server_state import Context
from ddcat_serve.http.v2_protocol import model_metadata
from ddcat_serve.inference.model_registry import Models, ServedModel, find

__all__ = ["LOADING", "index", "model_config", "model_statistics"]

LOADING = "models are neither loaded nor unloaded while the server runs: start it with the bundles that it is to serve"


def model_config(models: Models, model: ServedModel) -> dict[str, Any]:
    """Return a model's configuration as Triton has it: dims are without the batch; its `max_batch_size` is 0 for no end."""
    about = model_metadata(models, model)
    batch = model.bundle.manifest.shapes.batch.maximum
    tensors = {
        kind: [
            {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][batch is not None :]}
            for tensor in about[f"{kind}s"]
        ]
        for kind in ("input", "output")
    }
    return {
        "name": model.name,
        "platform": about["platform"],
        "backend": "ddcat",
        "max_batch_size": batch or 0,
        **tensors,
    }


def index(context: Context, *, ready: bool = False) -> list[dict[str, str]]:
    """List all versions of all models, or those that take requests."""
    states = [(model, model.ready and not context.draining) for model in context.served]
    return [
        {
            "name": model.name,
            "version": model.version,
            "state": "READY" if takes else "UNAVAILABLE",
            "reason": "" if takes else model.worker.state if not context.draining else "stopping",
        }
        for model, takes in states
        if takes or not ready
    ]


def model_statistics(context: Context, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """
    Return the statistics of one version of a model, of all of its versions, or of all models.

    Raises
    ------
    RequestError
        404 where there is none.
    """
    if name is None and version is not None:
        raise RequestError(400, "a version is named without its model: name both")
    if name is None:
        chosen = context.served
    elif version is None:
        find(context.models, name)
        chosen = list(context.models[name].values())
    else:
        chosen = [find(context.models, name, version)]
    return {"model_stats": [model.usage.statistics(model.name, model.version) for model in chosen]}
